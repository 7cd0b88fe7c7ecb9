// The part of the Objective-C runtime that a client of the engine's classes touches, emulated in plain C, with what a
// test wants to know: live objects by class, what was done wrong, the calls made, and one call that fails.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct class_ *Class;
typedef struct object *id;
typedef const char *SEL;
typedef uintptr_t (*IMP)(id, SEL, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);

struct object {
    Class isa;
    long references;
    long generation;  // of the use of the fake that made it
};

// As the public runtime has them.
Class objc_getClass(const char *name);
SEL sel_registerName(const char *name);
const char *sel_getName(SEL selector);
void *class_getInstanceMethod(Class owner, SEL selector);
void *class_getClassMethod(Class owner, SEL selector);
const char *method_getTypeEncoding(const void *method);
uintptr_t objc_msgSend(id receiver, SEL selector, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,
                       uintptr_t);

// In the order of their numbers; over GNUstep in that of the link, whose own code comes before.
#ifdef GNUSTEP
#define CONSTRUCTOR(order) __attribute__((constructor))
#else
#define CONSTRUCTOR(order) __attribute__((constructor(order)))
#endif

// For the classes that are defined on top. Methods have the runtime's type encodings.
Class make_class(const char *name, Class parent, size_t payload);
void add_method(Class owner, char kind, const char *selector, const char *encoding, void *function);
id make_object(Class of);  // with one reference
bool current(id object);   // not one of an earlier use of the fake
void *payload(id object);
bool is_kind(id object, const char *name);
id retain(id object);
void release(id object);
id autorelease(id object);
extern Class root_class;

// Writes down that a rule was broken; the tests fail on any.
void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Whether this call of a C function is the one that is to fail. Messages are counted by objc_msgSend.
bool fails(const char *name);
// An argument of a method must be of a class; false, and a violation, when it is not.
bool expect(id object, const char *class_name, const char *method, int argument);
// Where the cost of calls is measured (UNCHECKED), what a run calls does nothing.
#ifdef UNCHECKED
enum { unchecked = true };
#define DOES_NOTHING(result) if (unchecked) return result
#else
#define DOES_NOTHING(result)
#endif
