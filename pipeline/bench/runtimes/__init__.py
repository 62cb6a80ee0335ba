"""The benchmarked runtimes, one file each. To add a runtime, write its file and list it in `table`."""
