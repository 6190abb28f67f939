"""What only one thread may do at a time, because torch or Python keep its state for the whole process."""

from threading import RLock

ONE_AT_A_TIME = RLock()
