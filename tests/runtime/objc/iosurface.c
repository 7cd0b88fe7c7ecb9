// IOSurface's C functions. Engine and processor have memory of their own, brought in line by lock and unlock, so that
// one that is forgotten shows.
#include "iosurface.h"

#include <stdlib.h>
#include <string.h>

enum { READ_ONLY = 1, NOT_LOCKED = -536870206 };

typedef struct {
    size_t size;
    char *processor, *engine;
    int locks;
} surface;

int coherent_surfaces;
static Class iosurface;
id kIOSurfaceWidth, kIOSurfaceHeight, kIOSurfaceBytesPerElement, kIOSurfaceBytesPerRow, kIOSurfaceAllocSize,
    kIOSurfacePixelFormat;

size_t surface_size(id object) { return ((surface *)payload(object))->size; }
bool surface_locked(id object) { return ((surface *)payload(object))->locks > 0; }

void *engine_memory(id object) {
    surface *s = payload(object);
    return coherent_surfaces ? s->processor : s->engine;
}

static int64_t property(id properties, id key) {
    id found = value_of(properties, text_of(key));
    if (found && expect(found, "NSNumber", "IOSurfaceCreate", 1)) return number_of(found);
    violation("IOSurfaceCreate: no %s", text_of(key));
    return 0;
}

id IOSurfaceCreate(id properties) {
    if (fails("IOSurfaceCreate") || !expect(properties, "NSDictionary", "IOSurfaceCreate", 1)) return NULL;
    int64_t width = property(properties, kIOSurfaceWidth), height = property(properties, kIOSurfaceHeight);
    int64_t element = property(properties, kIOSurfaceBytesPerElement), row = property(properties, kIOSurfaceBytesPerRow);
    int64_t size = property(properties, kIOSurfaceAllocSize);
    property(properties, kIOSurfacePixelFormat);
    if (size <= 0 || width * element > row || row * height > size) return NULL;
    id object = make_object(iosurface);
    *(surface *)payload(object) = (surface){size, calloc(1, size), calloc(1, size), 0};
    return object;
}

static void drop_memory(id object) {
    surface *s = payload(object);
    free(s->processor);
    free(s->engine);
}

int IOSurfaceLock(id object, uint32_t options, uint32_t *seed) {
    (void)options, (void)seed;
    DOES_NOTHING(0);
    if (fails("IOSurfaceLock") || !expect(object, "IOSurface", "IOSurfaceLock", 1)) return -1;
    surface *s = payload(object);
    if (!s->locks++ && !coherent_surfaces) memcpy(s->processor, s->engine, s->size);
    return 0;
}

int IOSurfaceUnlock(id object, uint32_t options, uint32_t *seed) {
    (void)seed;
    DOES_NOTHING(0);
    if (fails("IOSurfaceUnlock") || !expect(object, "IOSurface", "IOSurfaceUnlock", 1)) return -1;
    surface *s = payload(object);
    if (!s->locks) return NOT_LOCKED;
    if (!--s->locks && !(options & READ_ONLY) && !coherent_surfaces) memcpy(s->engine, s->processor, s->size);
    return 0;
}

void *IOSurfaceGetBaseAddress(id object) {
    if (fails("IOSurfaceGetBaseAddress") || !expect(object, "IOSurface", "IOSurfaceGetBaseAddress", 1)) return NULL;
    if (!surface_locked(object)) violation("IOSurfaceGetBaseAddress: the surface is not locked");
    return ((surface *)payload(object))->processor;
}

void CFRelease(id object) { release(object); }

CONSTRUCTOR(103) static void define(void) {
    iosurface = make_class("IOSurface", root_class, sizeof(surface));
    add_method(iosurface, '-', "dealloc", "v16@0:8", drop_memory);
    kIOSurfaceWidth = constant_string("IOSurfaceWidth");
    kIOSurfaceHeight = constant_string("IOSurfaceHeight");
    kIOSurfaceBytesPerElement = constant_string("IOSurfaceBytesPerElement");
    kIOSurfaceBytesPerRow = constant_string("IOSurfaceBytesPerRow");
    kIOSurfaceAllocSize = constant_string("IOSurfaceAllocSize");
    kIOSurfacePixelFormat = constant_string("IOSurfacePixelFormat");
}
