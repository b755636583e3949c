"""Students that embed: texts become vectors, alone or with others that they are compared with."""
