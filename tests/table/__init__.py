"""Tables: their files, their numbers, and a whole small one."""
