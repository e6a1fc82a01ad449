"""What keeps a run from harm that comes from outside: other runs in its folder, full disks, processes that hang."""
