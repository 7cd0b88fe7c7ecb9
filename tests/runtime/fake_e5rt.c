/* A strict fake of the C functions of Espresso.framework.
 *
 * Prototypes, argument order and ownership follow the published accounts (ANEForge 0.4.0 e5rt_api.h and its dispatch
 * layer, ane-guide chapter 6); what a program computes is left to callbacks. What the real library would leave
 * undefined is a violation here: it is written down with the function's name, and the call fails. Where accounts
 * differ, a switch of struct fake_switches chooses.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef CACHE_OF_FACTS  /* the name that one account gives the function */
#define SET_CACHE e5rt_e5_compiler_config_options_set_bundle_cache_location
#else
#define SET_CACHE e5rt_e5_compiler_config_options_set_cache_bundle_location
#endif

enum { MISUSE = 1, NOT_FOUND = 2, REFUSED = 11, BUDGET = 13, ENGINE = 4 };
enum kind { CONFIG, COMPILER, OPTIONS, LIBRARY, FUNCTION, OP_OPTIONS, OPERATION, PORT, DESC, BUFFER, STREAM, KINDS };
static const char *kind_names[KINDS] = {"compiler config options", "compiler", "compiler options", "program library",
    "program function", "compute op options", "stream operation", "port", "tensor descriptor", "buffer object", "stream"};

struct declared { char function[64], name[64]; int output; uint64_t item, rank; int64_t shape[8]; struct declared *next; };

struct object {
    enum kind kind;
    bool alive;
    int generation;               /* the use of the fake that it was made in */
    int children;                 /* objects made of this one and not yet released */
    struct object *parent, *next;
    char text[1024];              /* name of a function or a port, folder of the cache */
    uint64_t mask, size;
    bool forced, graph;           /* compiler options */
    struct declared *ports;       /* of a library */
    struct declared *type;        /* of a port or a descriptor */
    int64_t strides[8];           /* of a descriptor */
    struct object *bound;         /* of a port: its buffer */
    struct object *stream;        /* of an operation: where it is encoded; of a stream: the operation */
    enum { FRESH, ENCODED, RESET, READY } state; /* of an operation */
    void *data;                   /* of a buffer */
};

struct fake_switches {
    int packed;                   /* rows are packed, not strided to 64 bytes */
    int in_elements;              /* strides count elements, not bytes */
    int binds_once;               /* an operation that was encoded never takes another buffer */
    int loads_per_operation;      /* each operation takes a place of its own among the loaded programs */
    int loaded_programs, compiles;/* budgets; 0: none */
};
struct fake_switches fake_switches;

typedef int (*compile_callback)(void *library, const char *path);
typedef int (*execute_callback)(void *library, const char *function, int count, const char **names, void **pointers);
static compile_callback on_compile;
static execute_callback on_execute;
static struct object *objects;
static char violations[1 << 16], message[1024], calls[1 << 20];
static size_t calls_length;
static int generation, calls_made, fail_at, fail_code, hang_at, abort_at, compiles_made;

/* -- what the tests read and set -- */

void fake_reset(compile_callback compile, execute_callback execute) {
    on_compile = compile, on_execute = execute;
    generation++;                 /* objects stay in memory: a stale handle must be told from a live one */
    violations[0] = message[0] = calls[0] = 0;
    calls_length = 0;
    calls_made = fail_at = hang_at = abort_at = compiles_made = 0;
    memset(&fake_switches, 0, sizeof fake_switches);
}
void fake_fail_at(int call, int code) { fail_at = call, fail_code = code; }
void fake_hang_at(int call) { hang_at = call; }
void fake_abort_at(int call) { abort_at = call; }
int fake_calls_made(void) { return calls_made; }
const char *fake_calls(void) { return calls; }
const char *fake_violations(void) { return violations; }
void fake_set_message(const char *text) { snprintf(message, sizeof message, "%s", text); }

int fake_alive(char *text, size_t room) {
    int counts[KINDS] = {0}, total = 0;
    for (struct object *o = objects; o; o = o->next) if (o->alive && o->generation == generation) counts[o->kind]++, total++;
    text[0] = 0;
    for (int k = 0; k < KINDS; k++)
        if (counts[k]) snprintf(text + strlen(text), room - strlen(text), "%d %s; ", counts[k], kind_names[k]);
    return total;
}

/* -- checks -- */

static int violate(const char *function, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[512];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(violations + strlen(violations), sizeof violations - strlen(violations), "%s: %s\n", function, text);
    fake_set_message(text);
    return MISUSE;
}

static int enter(const char *function) {
#ifdef UNCHECKED  /* a library that does nothing, to measure what its caller adds */
    return (void)function, 0;
#endif
    calls_made++;
    if (calls_length + 128 < sizeof calls) calls_length += sprintf(calls + calls_length, "%s\n", function + 5);
    if (calls_made == hang_at) for (;;) sleep(1000);
    if (calls_made == abort_at) abort();
    if (calls_made != fail_at) return 0;
    fake_set_message("a failure was asked for");
    return fail_code;
}
#define ENTER int injected = enter(__func__); if (injected) return injected

static bool is(const char *function, void *handle, enum kind kind) {
#ifdef UNCHECKED
    return true;
#endif
    for (struct object *o = objects; o; o = o->next) {
        if (o != handle) continue;
        if (!o->alive) violate(function, "a %s is used after its release", kind_names[o->kind]);
        else if (o->kind != kind) violate(function, "a %s is given, a %s is wanted", kind_names[o->kind], kind_names[kind]);
        return o->alive && o->kind == kind;
    }
    violate(function, "%p is no object, a %s is wanted", handle, kind_names[kind]);
    return false;
}
#define IS(handle, kind) if (!is(__func__, handle, kind)) return MISUSE
#define GIVEN(pointer) if (!(pointer)) return violate(__func__, "NULL where " #pointer " is wanted")

static struct object *make(enum kind kind, struct object *parent) {
    struct object *o = calloc(1, sizeof *o);
    o->kind = kind, o->alive = true, o->generation = generation, o->parent = parent, o->next = objects;
    if (parent) parent->children++;
    return objects = o;
}

static bool of_earlier_use(void **handle) {  /* such objects are released late, and not counted */
    for (struct object *o = objects; o; o = o->next)
        if (handle && o == *handle && o->generation != generation) return true;
    return false;
}

static int release(const char *function, void **handle, enum kind kind) {
    if (of_earlier_use(handle)) return 0;
    int injected = enter(function);  /* an object whose release fails is gone all the same */
    if (!handle) return violate(function, "NULL where the address of a handle is wanted");
    if (!is(function, *handle, kind)) return MISUSE;
    struct object *o = *handle;
    if (o->children) return violate(function, "%d objects made of this %s are still there", o->children, kind_names[kind]);
    if (kind == OPERATION && o->stream) return violate(function, "the operation is still encoded in a stream");
    if (kind == STREAM && o->stream) o->stream->stream = NULL, o->stream->state = RESET;
    if (o->parent) o->parent->children--;
    if (o->data) memset(o->data, 0xff, o->size);  /* NaN for whoever reads on */
    o->alive = false;
    *handle = NULL;
    return injected;
}
#define RELEASE(name, kind) int64_t name(void **obj) { return release(__func__, obj, kind); }

const char *e5rt_get_last_error_message(void) { return message; }

/* -- compile -- */

int64_t e5rt_e5_compiler_config_options_create(void **out) { ENTER; GIVEN(out); *out = make(CONFIG, NULL); return 0; }
RELEASE(e5rt_e5_compiler_config_options_release, CONFIG)

int64_t SET_CACHE(void *obj, const char *path) {
    ENTER; IS(obj, CONFIG); GIVEN(path);
    struct stat found;
    if (stat(path, &found) || !S_ISDIR(found.st_mode)) return violate(__func__, "'%s' is no folder", path);
    snprintf(((struct object *)obj)->text, 1024, "%s", path);
    return 0;
}

int64_t e5rt_e5_compiler_create_with_config(void **out_compiler, void *config) {
    ENTER; GIVEN(out_compiler); IS(config, CONFIG);
    if (!((struct object *)config)->text[0]) return violate(__func__, "the config has no cache location");
    *out_compiler = make(COMPILER, config);
    return 0;
}
RELEASE(e5rt_e5_compiler_release, COMPILER)

int64_t e5rt_e5_compiler_options_create(void **out) { ENTER; GIVEN(out); *out = make(OPTIONS, NULL); return 0; }
RELEASE(e5rt_e5_compiler_options_release, OPTIONS)

int64_t e5rt_e5_compiler_options_set_compute_device_types_mask(void *obj, uint64_t mask) {
    ENTER; IS(obj, OPTIONS);
    ((struct object *)obj)->mask = mask;
    return 0;
}

int64_t e5rt_e5_compiler_options_set_force_recompilation(void *obj, int value) {
    ENTER; IS(obj, OPTIONS);
    ((struct object *)obj)->forced = value == 1;
    return 0;
}

int64_t e5rt_e5_compiler_options_set_segmenter(void *obj, const char *value) {
    ENTER; IS(obj, OPTIONS); GIVEN(value);
    ((struct object *)obj)->graph = !strcmp(value, "graph");
    return 0;
}

int64_t e5rt_e5_compiler_compile(void *compiler, const char *path, void *options, void **out_library) {
    ENTER; IS(compiler, COMPILER); GIVEN(path); IS(options, OPTIONS); GIVEN(out_library);
    struct object *o = options;
    if (o->mask != ENGINE) return violate(__func__, "device mask %d is not the engine's", (int)o->mask);
    if (!o->forced || !o->graph) return violate(__func__, "force_recompilation and segmenter 'graph' are not set");
    if (access(path, R_OK)) return violate(__func__, "'%s' cannot be read", path);
    if (fake_switches.compiles && ++compiles_made > fake_switches.compiles) {
        fake_set_message("the compile budget of the process is spent");
        return REFUSED;
    }
    struct object *library = make(LIBRARY, NULL);
    int code = on_compile(library, path);
    if (code) { library->alive = false; return code; }
    *out_library = library;
    return 0;
}
RELEASE(e5rt_program_library_release, LIBRARY)

/* Called back while a library is compiled, for each port of each of its functions. */
void fake_declare(void *library, const char *function, const char *name, int output, uint64_t item, uint64_t rank,
                  const int64_t *shape) {
    struct declared *d = calloc(1, sizeof *d);
    snprintf(d->function, sizeof d->function, "%s", function);
    snprintf(d->name, sizeof d->name, "%s", name);
    d->output = output, d->item = item, d->rank = rank;
    memcpy(d->shape, shape, rank * sizeof *shape);
    d->next = ((struct object *)library)->ports;
    ((struct object *)library)->ports = d;
}

/* -- load -- */

int64_t e5rt_program_library_retain_program_function(void *library, const char *name, void **out) {
    ENTER; IS(library, LIBRARY); GIVEN(name); GIVEN(out);
    struct declared *d = ((struct object *)library)->ports;
    while (d && strcmp(d->function, name)) d = d->next;
    if (!d) { fake_set_message("no such function"); return NOT_FOUND; }
    struct object *function = make(FUNCTION, library);
    snprintf(function->text, sizeof function->text, "%s", name);
    *out = function;
    return 0;
}
RELEASE(e5rt_program_function_release, FUNCTION)

int64_t e5rt_precompiled_compute_op_create_options_create_with_program_function(void **out_options, void *function) {
    ENTER; GIVEN(out_options); IS(function, FUNCTION);
    *out_options = make(OP_OPTIONS, function);
    return 0;
}
RELEASE(e5rt_precompiled_compute_op_create_options_release, OP_OPTIONS)

int64_t e5rt_precompiled_compute_op_create_options_set_operation_name(void *obj, const char *name) {
    ENTER; IS(obj, OP_OPTIONS); GIVEN(name);
    snprintf(((struct object *)obj)->text, 1024, "%s", name);
    return 0;
}

int64_t e5rt_precompiled_compute_op_create_options_set_allocate_intermediate_buffers(void *obj, int value) {
    ENTER; IS(obj, OP_OPTIONS);
    ((struct object *)obj)->forced = value == 1;
    return 0;
}

static int loaded(void) {
    int count = 0;
    for (struct object *o = objects; o; o = o->next) {
        if (!o->alive || o->generation != generation) continue;
        count += fake_switches.loads_per_operation ? o->kind == OPERATION : o->kind == FUNCTION;
    }
    return count;
}

int64_t e5rt_execution_stream_operation_create_precompiled_compute_operation_with_options(void **out, void *options) {
    ENTER; GIVEN(out); IS(options, OP_OPTIONS);
    struct object *o = options;
    if (!o->text[0] || !o->forced) return violate(__func__, "the options lack a name or intermediate buffers");
    if (fake_switches.loaded_programs &&
        loaded() + fake_switches.loads_per_operation > fake_switches.loaded_programs) {
        fake_set_message("ANE model load has failed");
        return BUDGET;
    }
    *out = make(OPERATION, options);
    return 0;
}
RELEASE(e5rt_execution_stream_operation_release, OPERATION)

/* -- bind -- */

static struct object *library_of(struct object *operation) { return operation->parent->parent->parent; }
static const char *function_of(struct object *operation) { return operation->parent->parent->text; }

static int retain_port(const char *caller, struct object *operation, const char *name, int output, void **out) {
    for (struct declared *d = library_of(operation)->ports; d; d = d->next) {
        if (strcmp(d->function, function_of(operation)) || strcmp(d->name, name) || d->output != output) continue;
        struct object *port = make(PORT, operation);
        port->type = d;
        *out = port;
        return 0;
    }
    return violate(caller, "the function has no %s port '%s'", output ? "output" : "input", name);
}

int64_t e5rt_execution_stream_operation_retain_input_port(void *operation, const char *name, void **out_port) {
    ENTER; IS(operation, OPERATION); GIVEN(name); GIVEN(out_port);
    return retain_port(__func__, operation, name, 0, out_port);
}

int64_t e5rt_execution_stream_operation_retain_output_port(void *operation, const char *name, void **out_port) {
    ENTER; IS(operation, OPERATION); GIVEN(name); GIVEN(out_port);
    return retain_port(__func__, operation, name, 1, out_port);
}
RELEASE(e5rt_io_port_release, PORT)

static uint64_t layout(const struct declared *d, int64_t *strides) { /* in bytes; returns the bytes of the whole */
    uint64_t step = d->item;
    for (int axis = (int)d->rank - 1; axis >= 0; axis--) {
        strides[axis] = (int64_t)step;
        step *= d->shape[axis];
        if (axis == (int)d->rank - 1 && !fake_switches.packed) step = (step + 63) / 64 * 64;
    }
    return step;
}

int64_t e5rt_io_port_retain_tensor_desc(void *port, void **out) {
    ENTER; IS(port, PORT); GIVEN(out);
    struct object *desc = make(DESC, port);
    desc->type = ((struct object *)port)->type;
    layout(desc->type, desc->strides);
    for (uint64_t axis = 0; axis < desc->type->rank; axis++)
        if (fake_switches.in_elements) desc->strides[axis] /= (int64_t)desc->type->item;
    *out = desc;
    return 0;
}
RELEASE(e5rt_tensor_desc_release, DESC)

int64_t e5rt_tensor_desc_get_strides(void *desc, uint64_t *rank, const int64_t **strides) {
    ENTER; IS(desc, DESC); GIVEN(rank); GIVEN(strides);
    *rank = ((struct object *)desc)->type->rank;
    *strides = ((struct object *)desc)->strides;
    return 0;
}

int64_t e5rt_buffer_object_alloc(void **out_buffer, uint64_t size, uint32_t type) {
    ENTER; GIVEN(out_buffer);
    if (type > 2) { fake_set_message("Invalid BufferType @ AllocMemory"); return MISUSE; }
    if (!size || size % 64) return violate(__func__, "%llu bytes are no multiple of 64", (unsigned long long)size);
    struct object *o = make(BUFFER, NULL);
    o->size = size, o->data = aligned_alloc(64, size);
    *out_buffer = o;
    return 0;
}
RELEASE(e5rt_buffer_object_release, BUFFER)

int64_t e5rt_buffer_object_get_data_ptr(void *buffer, void **out) {
    ENTER; IS(buffer, BUFFER); GIVEN(out);
    *out = ((struct object *)buffer)->data;
    return 0;
}

int64_t e5rt_io_port_bind_buffer_object(void *port, void *buffer) {
    ENTER; IS(port, PORT); IS(buffer, BUFFER);
    struct object *p = port, *operation = p->parent, *b = buffer;
    int64_t strides[8];
    uint64_t needed = layout(p->type, strides);
    if (b->size < needed)
        return violate(__func__, "port '%s' needs %d bytes, the buffer has %d", p->type->name, (int)needed, (int)b->size);
    if (operation->state == ENCODED || operation->state == RESET)
        return violate(__func__, "the operation is encoded: its bindings cannot change");
    if (operation->state == READY && fake_switches.binds_once) { fake_set_message("bind state is final"); return MISUSE; }
    p->bound = b;
    return 0;
}

/* -- execute -- */

int64_t e5rt_execution_stream_create(void **out_stream) { ENTER; GIVEN(out_stream); *out_stream = make(STREAM, NULL); return 0; }
RELEASE(e5rt_execution_stream_release, STREAM)

int64_t e5rt_execution_stream_encode_operation(void *stream, void *operation) {
    ENTER; IS(stream, STREAM); IS(operation, OPERATION);
    struct object *s = stream, *o = operation;
    if (o->state == ENCODED || o->state == RESET) return violate(__func__, "the operation is not ready to be encoded");
    o->state = ENCODED, o->stream = s, s->stream = o;
    return 0;
}

int64_t e5rt_execution_stream_reset(void *stream) {
    ENTER; IS(stream, STREAM);
    struct object *s = stream;
    if (!s->stream) return violate(__func__, "nothing was encoded in this stream");
    s->stream->state = RESET, s->stream->stream = NULL, s->stream = NULL;
    return 0;
}

int64_t e5rt_execution_stream_operation_prepare_op_for_encode(void *operation) {
    ENTER; IS(operation, OPERATION);
    struct object *o = operation;
    if (o->state == FRESH)
        return violate(__func__, "Op has not been encoded and hence cannot be reset to 'ReadyForEncode'");
    if (o->state != RESET) return violate(__func__, "the operation is still in its stream");
    o->state = READY;
    return 0;
}

int64_t e5rt_execution_stream_execute_sync(void *stream) {
    ENTER; IS(stream, STREAM);
    struct object *o = ((struct object *)stream)->stream;
    if (!o) return violate(__func__, "nothing is encoded in this stream");
#ifdef UNCHECKED
    return 0;
#endif
    const char *names[256];
    void *pointers[256];
    int count = 0;
    for (struct declared *d = library_of(o)->ports; d; d = d->next) {
        if (strcmp(d->function, function_of(o))) continue;
        struct object *port = objects;
        while (port && !(port->alive && port->kind == PORT && port->parent == o && port->type == d)) port = port->next;
        if (!port || !port->bound) return violate(__func__, "port '%s' is not bound", d->name);
        if (!port->bound->alive) return violate(__func__, "port '%s' is bound to a buffer after its release", d->name);
        names[count] = d->name, pointers[count++] = port->bound->data;
    }
    return on_execute(library_of(o), function_of(o), count, names, pointers);
}
