"""What AI command lines print, read line by line: one translator a format, one account of the run for all of them."""
