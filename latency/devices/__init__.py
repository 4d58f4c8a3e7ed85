"""What a device is, and the profiles that describe devices which are not here."""
