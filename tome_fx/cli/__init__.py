"""The command line `tome-fx`. Nothing here is imported by the library."""
