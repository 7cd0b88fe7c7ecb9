// runtime.h and foundation.h over a real Objective-C runtime and a real Foundation: GCC's libobjc and gnustep-base. The
// classes of the engine and IOSurface are the same files as over the emulation; types of theirs are plain pointers here.
#import <Foundation/Foundation.h>
#import <Foundation/NSDebug.h>
#include <objc/runtime.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { CLASSES = 16, KEYS = 256 };

static struct {
    Class class;
    void (*drop)(id);
    long alive;
} fakes[CLASSES];
static int fakes_count;
static char violations[1 << 16];
Class root_class;
bool fake_logging;

void violation(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t used = strlen(violations);
    vsnprintf(violations + used, sizeof violations - used - 1, format, arguments);
    va_end(arguments);
    strcat(violations, "\n");
}

const char *fake_violations(void) { return violations; }

// Calls are neither counted nor made to fail here.
const char *fake_calls(void) { return ""; }
long fake_calls_made(void) { return 0; }
void fake_fail_at(long call, int code) { (void)call, (void)code; }
bool fails(const char *name) { return (void)name, false; }

bool is_kind(id object, const char *name) { return object && [object isKindOfClass:objc_getClass(name)]; }

bool expect(id object, const char *name, const char *where, int argument) {
    if (is_kind(object, name)) return true;
    violation("%s: argument %d is %s, %s expected", where, argument, object ? object_getClassName(object) : "nil", name);
    return false;
}

// ---- classes: their payload is an instance variable, so that objects are those of the runtime

static int number_of_class(Class class) {
    int i = 0;
    while (i < fakes_count && fakes[i].class != class) i++;
    return i;
}

static void dealloc(id object, SEL selector) {
    int i = number_of_class(object_getClass(object));
    if (fakes[i].drop) fakes[i].drop(object);
    fakes[i].alive--;
    class_getMethodImplementation([NSObject class], selector)(object, selector);
}

Class make_class(const char *name, Class parent, size_t size) {
    Class made = objc_allocateClassPair(parent, name, 0);
    char type[32];
    snprintf(type, sizeof type, "[%zuc]", size + 1);
    class_addIvar(made, "payload", size + 1, 4, type);
    class_addMethod(made, sel_registerName("dealloc"), (IMP)dealloc, "v16@0:8");
    objc_registerClassPair(made);
    fakes[fakes_count++].class = made;
    return made;
}

void add_method(Class owner, char kind, const char *selector, const char *encoding, void *function) {
    if (!strcmp(selector, "dealloc")) fakes[number_of_class(owner)].drop = function;
    else class_addMethod(kind == '+' ? object_getClass(owner) : owner, sel_registerName(selector), function, encoding);
}

id make_object(Class of) {
    fakes[number_of_class(of)].alive++;
    return [of alloc];
}

void *payload(id object) {
    return (char *)object + ivar_getOffset(class_getInstanceVariable(object_getClass(object), "payload"));
}

bool current(id object) { return (void)object, true; }
id retain(id object) { return [object retain]; }
void release(id object) { [object release]; }
id autorelease(id object) { return [object autorelease]; }
void CFRetain(id object) { [object retain]; }

// What Apple's runtime has, and GCC's has not, or only for compilers.
Class class_of(id object) __asm__("object_getClass");
Class class_of(id object) { return object_getClass(object); }
void *objc_autoreleasePoolPush(void) { return [NSAutoreleasePool new]; }
void objc_autoreleasePoolPop(void *pool) { [(NSAutoreleasePool *)pool release]; }

void forget_objects(void) {
    for (int i = 0; i < fakes_count; i++) fakes[i].alive = 0;
    violations[0] = 0;
}

void fake_alive(char *text, size_t size) {
    *text = 0;
    for (int i = 0; i < fakes_count; i++)
        if (fakes[i].alive)
            snprintf(text + strlen(text), size - strlen(text), "%ld %s; ", fakes[i].alive, class_getName(fakes[i].class));
}

// ---- Foundation

const char *temporary_folder(void) { return [NSTemporaryDirectory() UTF8String]; }
id make_string(const char *text) { return [NSString stringWithUTF8String:text]; }
id constant_string(const char *text) { return [[NSString alloc] initWithUTF8String:text]; }
id make_data(const void *bytes, size_t length) { return [NSData dataWithBytes:bytes length:length]; }
id make_number(int64_t value) { return [NSNumber numberWithLongLong:value]; }
id make_array(const id *objects, size_t count) { return [NSArray arrayWithObjects:objects count:count]; }

id make_dictionary(const id *values, const id *keys, size_t count) {
    return [NSDictionary dictionaryWithObjects:values forKeys:keys count:count];
}

id make_error(const char *domain, int code, const char *said) {
    NSDictionary *information = [NSDictionary dictionaryWithObject:make_string(said) forKey:NSLocalizedDescriptionKey];
    return [[NSError alloc] initWithDomain:make_string(domain) code:code userInfo:information];
}

const char *text_of(id object) {
    return [([object isKindOfClass:[NSURL class]] ? [(NSURL *)object path] : (NSString *)object) UTF8String];
}

const void *bytes_of(id object, size_t *length) {
    *length = [(NSData *)object length];
    return [(NSData *)object bytes];
}

int64_t number_of(id object) { return [(NSNumber *)object longLongValue]; }
size_t count_of(id object) { return [(NSArray *)object count]; }
id item_of(id object, size_t index) { return [(NSArray *)object objectAtIndex:index]; }
id value_of(id object, const char *key) { return [(NSDictionary *)object objectForKey:make_string(key)]; }

size_t keys_of(id object, const id **keys) {
    static id found[KEYS];
    size_t count = 0;
    for (id key in [(NSDictionary *)object allKeys])
        if (count < KEYS) found[count++] = key;
    *keys = found;
    return count;
}

// Messages can be sent once this file's own selectors are known to the runtime, which is after this.
__attribute__((constructor)) static void define(void) { root_class = objc_getClass("NSObject"); }
