"""The tests of tome_fx; ``tests.oracle`` holds the reference implementation they compare with."""
