"""From a captured program to what is in it: types, attention cores, sites, protected tokens."""
