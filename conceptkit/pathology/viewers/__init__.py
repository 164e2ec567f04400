"""Files for the viewers of slides: objects with measurements, maps that lie on the slide, and corrections read back."""
