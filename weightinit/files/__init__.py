"""What every kind of bundle shares: its files, checked before they are read."""
