"""What the device can read of itself: one file a source, paths and sockets handed in.

Every reading is named as ``edgekit.contracts.series`` has it. What is not there is missing; what is
there and says nothing is None. No reading is a stand-in for another.
"""
