// Classes, messages, reference counts and autorelease pools; see runtime.h.
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct method {
    SEL selector;
    const char *encoding;
    void *function;
    struct method *next;
    bool may_fail;  // it gives an object or a BOOL, and not always
} method;

struct class_ {
    Class isa;  // the metaclass; a metaclass has itself
    long references, generation;
    Class parent;
    const char *name;
    size_t payload;
    bool meta;
    long alive;
    method *methods;
    Class next;
};

typedef struct {
    char *text;
    size_t size, room;
} log_;

Class root_class;
static Class classes;
static log_ violations, calls;
static long calls_made, failing_call, generation;
static int failing_code;
bool fake_logging;

static void append(log_ *log, const char *line) {
    size_t length = strlen(line);
    if (log->size + length + 2 > log->room) {
        log->room = 2 * (log->room + length + 2);
        log->text = realloc(log->text, log->room);
    }
    memcpy(log->text + log->size, line, length);
    log->size += length;
    memcpy(log->text + log->size++, "\n", 2);
}

void violation(const char *format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    append(&violations, line);
}

// ---- classes and selectors

SEL sel_registerName(const char *name) {
    static struct entry {
        struct entry *next;
        char name[];
    } *known;
    for (struct entry *e = known; e; e = e->next)
        if (!strcmp(e->name, name)) return e->name;
    struct entry *e = malloc(sizeof *e + strlen(name) + 1);
    strcpy(e->name, name);
    e->next = known;
    return (known = e)->name;
}

const char *sel_getName(SEL selector) { return selector; }

Class objc_getClass(const char *name) {
    for (Class c = classes; c; c = c->next)
        if (!strcmp(c->name, name)) return c;
    return NULL;
}

Class make_class(const char *name, Class parent, size_t payload) {
    Class c = calloc(1, sizeof *c), meta = calloc(1, sizeof *meta);
    *meta = (struct class_){.isa = meta, .parent = parent ? parent->isa : c, .name = name, .meta = true};
    *c = (struct class_){.isa = meta, .parent = parent, .name = name, .payload = payload, .next = classes};
    return classes = c;
}

void add_method(Class owner, char kind, const char *selector, const char *encoding, void *function) {
    Class in = kind == '+' ? owner->isa : owner;
    method *m = malloc(sizeof *m);
    static const char *SURE = "retain isKindOfClass:";
    bool may_fail = (encoding[0] == '@' || encoding[0] == 'B') && !strstr(SURE, selector);
    *m = (method){sel_registerName(selector), encoding, function, in->methods, may_fail};
    in->methods = m;
}

void *class_getInstanceMethod(Class owner, SEL selector) {
    for (; owner; owner = owner->parent)
        for (method *m = owner->methods; m; m = m->next)
            if (m->selector == selector) return m;
    return NULL;
}

void *class_getClassMethod(Class owner, SEL selector) { return class_getInstanceMethod(owner->isa, selector); }

const char *method_getTypeEncoding(const void *found) { return ((const method *)found)->encoding; }

bool is_kind(id object, const char *name) {
    for (Class c = object ? object->isa : NULL; c; c = c->parent)
        if (!c->meta && !strcmp(c->name, name)) return true;
    return false;
}

bool expect(id object, const char *class_name, const char *where, int argument) {
    if (is_kind(object, class_name)) return true;
    violation("%s: argument %d is %s, %s expected", where, argument, object ? object->isa->name : "nil", class_name);
    return false;
}

// ---- objects. Memory is never given back, so that a message to a dead object is known as one; but where the cost of
// calls is measured (UNCHECKED) it is, as a real runtime does.

id make_object(Class of) {
    id object = calloc(1, sizeof(struct object) + of->payload);
    *object = (struct object){of, 1, generation};
    of->alive++;
    return object;
}

bool current(id object) { return object->generation == generation; }

void *payload(id object) { return object + 1; }

static bool dead(id object, const char *what) {
#ifdef UNCHECKED
    return (void)object, (void)what, false;
#endif
    if (object->isa->meta || object->references > 0) return false;
    violation("%s sent to a dead %s", what, object->isa->name);
    return true;
}

id retain(id object) {
    if (object && !object->isa->meta && !dead(object, "retain")) object->references++;
    return object;
}

void release(id object) {
    if (!object || object->isa->meta || dead(object, "release") || --object->references) return;
    method *m = class_getInstanceMethod(object->isa, sel_registerName("dealloc"));
    if (m) ((void (*)(id))m->function)(object);
    if (current(object)) object->isa->alive--;
#ifdef UNCHECKED
    free(object);
#endif
}

// ---- autorelease pools: a stack of objects, with marks where pools begin

static id *pooled;
static size_t pooled_count, pooled_room, pools;

id autorelease(id object) {
    if (!object) return object;
    if (!pools) violation("%s autoreleased without a pool in place: it leaks", object->isa->name);
    if (pooled_count == pooled_room) pooled = realloc(pooled, (pooled_room = 2 * pooled_room + 64) * sizeof *pooled);
    return pooled[pooled_count++] = object;
}

void *objc_autoreleasePoolPush(void) {
    pools++;
    return (void *)(pooled_count + 1);
}

void objc_autoreleasePoolPop(void *token) {
    if (!pools) violation("objc_autoreleasePoolPop: there is no pool");
    while (pooled_count > (size_t)token - 1) release(pooled[--pooled_count]);
    pools--;
}

// ---- messages. A call fails by giving nil or NO; a method that takes an NSError ** gives one, if it can.

static bool chosen(const char *name) {
    calls_made++;
    if (fake_logging) append(&calls, name);
    return calls_made == failing_call;
}

bool fails(const char *name) { return chosen(name); }

id make_error(const char *domain, int code, const char *said);

static uintptr_t fail(const char *encoding, const uintptr_t *arguments) {
    int position = 0;  // of the argument: codes are letters with an offset behind, those of self and _cmd come first
    const char *pointer = strstr(encoding, "^@");
    for (const char *c = strchr(encoding, ':') + 2; pointer && c < pointer; c++)
        position += (c[-1] >= '0' && c[-1] <= '9') && !(*c >= '0' && *c <= '9');
    bool errors = encoding[0] == 'B' && pointer;
    if (errors) *(id *)arguments[position] = autorelease(make_error("fake", failing_code, "it was told to fail"));
    return 0;
}

uintptr_t objc_msgSend(id receiver, SEL selector, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e,
                       uintptr_t f, uintptr_t g) {
    if (!receiver) return 0;
    if (dead(receiver, selector)) return 0;
    method *m = class_getInstanceMethod(receiver->isa, selector);
    char sign = receiver->isa->meta ? '+' : '-';
    const char *name = receiver->isa->meta ? ((Class)receiver)->name : receiver->isa->name;
    if (!m) {
        violation("%c[%s %s]: unrecognized selector", sign, name, selector);
        return 0;
    }
    if (m->may_fail) {
        char line[512] = "";
        if (fake_logging) snprintf(line, sizeof line, "%c[%s %s]", sign, name, selector);
        if (chosen(line)) return fail(m->encoding, (uintptr_t[]){a, b, c, d, e, f, g});
    }
    return ((IMP)m->function)(receiver, selector, a, b, c, d, e, f, g);
}

// ---- for the tests

void fake_alive(char *text, size_t size) {
    *text = 0;
    for (Class c = classes; c; c = c->next)
        if (c->alive) snprintf(text + strlen(text), size - strlen(text), "%ld %s; ", c->alive, c->name);
}

const char *fake_violations(void) { return violations.text ? violations.text : ""; }
const char *fake_calls(void) { return calls.text ? calls.text : ""; }
long fake_calls_made(void) { return calls_made; }

void fake_fail_at(long call, int code) {
    failing_call = call;
    failing_code = code;
}

void forget_objects(void) {
    for (Class c = classes; c; c = c->next) c->alive = 0;
    generation++;
    calls_made = failing_call = 0;
    if (violations.text) violations.text[violations.size = 0] = 0;
    if (calls.text) calls.text[calls.size = 0] = 0;
}

static bool is_kind_of(id object, SEL selector, Class of) {
    (void)selector;
    return is_kind(object, of->name);
}

CONSTRUCTOR(101) static void define(void) {
    root_class = make_class("NSObject", NULL, 0);
    add_method(root_class, '-', "retain", "@16@0:8", retain);
    add_method(root_class, '-', "release", "Vv16@0:8", release);
    add_method(root_class, '-', "isKindOfClass:", "B24@0:8#16", is_kind_of);
}
