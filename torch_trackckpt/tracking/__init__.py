"""Objects that know their children: by their attributes, and by the lists and dicts among these."""
