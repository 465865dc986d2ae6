"""What others send: programs, files and words that mean harm are refused in one sentence and do none."""
