"""Everything about how weights are stored: the formats, their numbers, the nodes that say them, and how to read them.

============  ==================================================================================================
``format``    what formats there are
``encode``    numbers to a format and back
``stacks``    constants of all experts that are made one expert at a time
``levels``    the nodes of scales of two levels
``stored``    which nodes say the format of a weight; reading and making them
============  ==================================================================================================
"""
