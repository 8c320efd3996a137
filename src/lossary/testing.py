"""What every loss must pass, usable on anybody's own loss."""
