"""Models of all families that transformers has, made tiny, and what each can be used as."""
