// Found in place of the CUDA toolkit's header of this name: the emulator defines all of CUDA at once.
#pragma once
#include "emulator/emulator.h"
