"""What every other folder uses: errors, processes, progress, quiet libraries, stage folders."""
