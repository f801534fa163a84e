"""The harness tested on itself: wrong kernels and wrong timers that it must catch, identical code it must call so."""
