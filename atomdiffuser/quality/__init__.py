"""What is wrong with single frames, and what happens while one is scanned: flags, reasons, and the numbers behind."""
