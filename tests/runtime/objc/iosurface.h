// IOSurfaces: memory that the processor and the engine share.
#pragma once
#include "foundation.h"

size_t surface_size(id surface);
bool surface_locked(id surface);
void *engine_memory(id surface);  // as the engine sees it
extern int coherent_surfaces;     // whether it sees what the processor writes at once, or at the next unlock
