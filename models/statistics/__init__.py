"""What a dense network does on calibration images: everything that a ranking or the recovery reads."""
