"""What a checkpoint is in memory and on the disk: its modules, its files and folders, one into the other."""
