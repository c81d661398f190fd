"""What Linux does on bare metal."""
