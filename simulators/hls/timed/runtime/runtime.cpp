// The one file that the simulation's functions are compiled in, without what sources under simulation are compiled with.
#include "region.h"
