"""The stages of a run, one file each. `pipeline.run.table` has their order.

A stage imports modules that need torch inside its functions: the table is read by every command, and most need no
    torch.
"""
