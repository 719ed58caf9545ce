"""Everything about how weights are stored: the formats, their numbers, the nodes that say them, and how to read them.

============  ==================================================================================================
``format``    what formats there are
``encode``    numbers to a format and back
``stacks``    constants of all experts that are made one expert at a time
``minima``    the nodes of minima; ``levels``: those of scales of two levels
``stored``    which nodes say the format of a weight operand; reading and making them
``experts``   the weights of the experts of one node, by expert and by part (gate, up, down)
============  ==================================================================================================
"""
