"""Pictures for people: colours, canvases, clouds of points."""
