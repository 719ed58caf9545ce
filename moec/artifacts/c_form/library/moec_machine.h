#ifndef MOEC_MACHINE_H
#define MOEC_MACHINE_H

#include "moec_program.h"

/* Check that this processor has the features that a program needs, and ask the system for those that it grants on
 * request. */
moec_error moec_check_machine(const moec_program *program);

#endif
