"""What a person does with the machine: run it, and read what it cost."""
