// The classes of AppleNeuralEngine.framework. They keep to the published facts, those on which accounts differ being
// switches, and leave compiling and computing to two callbacks.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "iosurface.h"

enum { PORTS = 128, FUNCTIONS = 256, AXES = 5, CREATED = 1, COMPILED = 2, LOADED = 3, INPUT = 0, OUTPUT = 1 };

typedef struct {
    char name[96];
    int itemsize;
    int64_t extents[AXES];  // batches, channels, depth, height, width
} port;

typedef struct {
    char name[96];
    int count[2];
    port ports[2][PORTS];
} function;

typedef struct {
    id first, second;  // what was given: folder and key, or descriptor; text and weights of a descriptor
    int state, functions;
    function *function;
} model;

typedef struct {
    id arrays[4];  // inputs, their indices, outputs, theirs
    id procedure;
} request;

typedef int (*on_compile)(id model, const char *folder);
typedef int (*on_evaluate)(id model, const char *function, int count, const char **names, void **memory);

static on_compile compile_callback;
static on_evaluate evaluate_callback;
static Class client_class, model_class, in_memory_class, descriptor_class, request_class, surface_class;
static id shared_client;
static int compiled, loaded;
static char message[4096];

struct {
    int client_refuses, text_order, packed, plain_names, idle, loads_late, loaded_programs, compiles;
} fake_switches;

static const char *DOMAIN = "com.apple.appleneuralengine";
static const char *COMPILER = "com.apple.appleneuralengine.compiler";
static const char *ESPRESSO = "com.apple.appleneuralengine.espresso";

static bool refuse(id *error, const char *domain, int code, const char *said) {
    if (error) *error = autorelease(make_error(domain, code, said));
    return false;
}

// ---- what a compiled program is, as the Python side declares it

void fake_declare(id owner, const char *name, const char *port_name, int kind, int itemsize, const int64_t *extents) {
    model *m = payload(owner);
    int i = 0;
    while (i < m->functions && strcmp(m->function[i].name, name)) i++;
    if (i == m->functions) {
        m->function = realloc(m->function, ++m->functions * sizeof *m->function);
        memset(&m->function[i], 0, sizeof *m->function);
        snprintf(m->function[i].name, sizeof m->function[i].name, "%s", name);
    }
    function *f = &m->function[i];
    int at = f->count[kind]++;
    if (!fake_switches.text_order)  // symbols are in ASCII order of their names
        for (; at && strcmp(f->ports[kind][at - 1].name, port_name) > 0; at--) f->ports[kind][at] = f->ports[kind][at - 1];
    port *p = &f->ports[kind][at];
    *p = (port){.itemsize = itemsize};
    snprintf(p->name, sizeof p->name, "%s", port_name);
    memcpy(p->extents, extents, sizeof p->extents);
}

void fake_set_message(const char *text) { snprintf(message, sizeof message, "%s", text); }

static int64_t row_bytes(const port *p) {
    int64_t row = p->extents[AXES - 1] * p->itemsize;
    return fake_switches.packed ? row : (row + 63) / 64 * 64;
}

static size_t port_bytes(const port *p) {
    return p->extents[0] * p->extents[1] * p->extents[2] * p->extents[3] * row_bytes(p);
}

static id symbol(const port *p, int kind) {
    char name[128];
    snprintf(name, sizeof name, "%s%s", p->name, kind == OUTPUT && !fake_switches.plain_names ? "@output" : "");
    return make_string(name);
}

// ---- modelAttributes

static id dictionary(int count, const char **names, const id *values) {
    id keys[32];
    for (int i = 0; i < count; i++) keys[i] = make_string(names[i]);
    return make_dictionary(values, keys, count);
}

static id port_attributes(const port *p, int kind) {
    int64_t row = row_bytes(p), strides[4] = {0, 0, 0, row};
    for (int axis = 2; axis >= 0; axis--) strides[axis] = strides[axis + 1] * p->extents[axis + 1];
    const char *names[] = {"Name",   "Symbol", "Type",        "Batches",     "Channels",    "Depth",
                           "Height", "Width",  "BatchStride", "PlaneStride", "DepthStride", "RowStride"};
    id values[12] = {symbol(p, kind), symbol(p, kind), make_string(p->itemsize == 2 ? "Float16" : "Float32")};
    for (int axis = 0; axis < AXES; axis++) values[3 + axis] = make_number(p->extents[axis]);
    for (int axis = 0; axis < 4; axis++) values[8 + axis] = make_number(strides[axis]);
    return dictionary(12, names, values);
}

static id attributes_of(id owner) {
    model *m = payload(owner);
    static const char *DESCRIPTION[] = {"ANEFModelProcedures", "kANEFModelInputSymbolsArrayKey",
                                        "kANEFModelOutputSymbolsArrayKey", "kANEFModelProcedureNameToIDMapKey"};
    static const char *PROCEDURE[] = {"ANEFModelProcedureID", "ANEFModelInputSymbolIndexArray",
                                      "ANEFModelOutputSymbolIndexArray"};
    static const char *STATUS[] = {"LiveInputList", "LiveOutputList"};
    static const char *ALL[] = {"ANEFModelDescription", "NetworkStatusList"};
    if (m->state != LOADED) return make_dictionary(NULL, NULL, 0);
    id procedures[FUNCTIONS], statuses[FUNCTIONS], names[FUNCTIONS], numbers[FUNCTIONS], symbols[2][FUNCTIONS * PORTS];
    int used[2] = {0, 0};
    for (int i = 0; i < m->functions; i++) {
        function *f = &m->function[i];
        id lists[2], indices[2];
        for (int kind = INPUT; kind <= OUTPUT; kind++) {
            id entries[PORTS], positions[PORTS];
            for (int k = 0; k < f->count[kind]; k++) {
                entries[k] = port_attributes(&f->ports[kind][k], kind);
                positions[k] = make_number(used[kind]);
                symbols[kind][used[kind]++] = symbol(&f->ports[kind][k], kind);
            }
            lists[kind] = make_array(entries, f->count[kind]);
            indices[kind] = make_array(positions, f->count[kind]);
        }
        numbers[i] = make_number(i);
        names[i] = make_string(f->name);
        procedures[i] = dictionary(3, PROCEDURE, (id[]){numbers[i], indices[INPUT], indices[OUTPUT]});
        statuses[i] = dictionary(2, STATUS, lists);
    }
    id described = dictionary(4, DESCRIPTION,
                              (id[]){make_array(procedures, m->functions), make_array(symbols[INPUT], used[INPUT]),
                                     make_array(symbols[OUTPUT], used[OUTPUT]),
                                     make_dictionary(numbers, names, m->functions)});
    return dictionary(2, ALL, (id[]){described, make_array(statuses, m->functions)});
}

// ---- the life of a program

static bool compile(id owner, const char *folder, id *error) {
    model *m = payload(owner);
    m->functions = 0;
    compiled++;
    *message = 0;
    if (compile_callback(owner, folder)) return refuse(error, COMPILER, 1, message);
    m->state = COMPILED;
    return true;
}

static bool load(id owner, id *error) {
    model *m = payload(owner);
    static bool refused_once;
    if (m->state == LOADED) violation("load: the program is loaded already");
    if (m->state == CREATED) return refuse(error, DOMAIN, 6, "the program is not compiled");
    if (fake_switches.loaded_programs && loaded >= fake_switches.loaded_programs)
        return refuse(error, DOMAIN, 6, "Program load failure (0x50004)");
    if (fake_switches.loads_late && (refused_once = !refused_once)) return refuse(error, DOMAIN, 6, "no place is free");
    loaded++;
    m->state = LOADED;
    return true;
}

static bool unload(id owner, id *error) {
    model *m = payload(owner);
    if (m->state != LOADED) return refuse(error, DOMAIN, 7, "the program is not loaded");
    if (current(owner)) loaded--;
    m->state = COMPILED;
    return true;
}

static void drop_model(id owner) {
    model *m = payload(owner);
    if (m->state == LOADED) violation("a program dies while it is loaded");
    free(m->function);
    release(m->first);
    release(m->second);
}

static bool evaluate(id owner, id asked, const char *where, id *error) {
    DOES_NOTHING(true);
    model *m = payload(owner);
    if (!expect(asked, "_ANERequest", where, 3)) return refuse(error, DOMAIN, 8, "no request");
    if (m->state != LOADED) return refuse(error, DOMAIN, 8, "the program is not loaded");
    request *r = payload(asked);
    int64_t index = number_of(r->procedure);
    if (index < 0 || index >= m->functions) return refuse(error, DOMAIN, 8, "Program Inference error, status=0x2");
    function *f = &m->function[index];
    const char *names[2 * PORTS];
    void *memory[2 * PORTS];
    int count = 0, first[2] = {0, 0};
    for (int i = 0; i < index; i++)
        for (int kind = INPUT; kind <= OUTPUT; kind++) first[kind] += m->function[i].count[kind];
    for (int kind = INPUT; kind <= OUTPUT; kind++) {
        id surfaces = r->arrays[2 * kind], indices = r->arrays[2 * kind + 1];
        if (count_of(surfaces) != (size_t)f->count[kind] || count_of(indices) != count_of(surfaces))
            return refuse(error, DOMAIN, 8, "Program Inference error, status=0x2");
        for (size_t i = 0; i < count_of(surfaces); i++) {
            int64_t at = number_of(item_of(indices, i)) - first[kind];
            if (at < 0 || at >= f->count[kind]) return refuse(error, DOMAIN, 8, "Program Inference error, status=0x2");
            id surface = *(id *)payload(item_of(surfaces, i));
            if (surface_locked(surface)) violation("%s: surface %zu is locked for the processor", where, i);
            if (surface_size(surface) < port_bytes(&f->ports[kind][at]))
                return refuse(error, DOMAIN, 8,
                              "ANEProgramProcessRequestDirect() Failed with status=0x1d : statusType=0x9: Program "
                              "Inference error");
            names[count] = f->ports[kind][at].name;
            memory[count++] = engine_memory(surface);
        }
    }
    *message = 0;
    if (fake_switches.idle || !evaluate_callback(owner, f->name, count, names, memory)) return true;
    return refuse(error, DOMAIN, 8, message);
}

// ---- _ANEClient and _ANEModel

static id model_at(Class of, SEL s, id url, id key) {
    (void)s;
    bool right = expect(url, "NSURL", "+[_ANEModel modelAtURL:key:]", 1);
    if (!(expect(key, "NSString", "+[_ANEModel modelAtURL:key:]", 2) && right)) return NULL;
    id object = make_object(of);
    *(model *)payload(object) = (model){.first = retain(url), .second = retain(key), .state = CREATED};
    return autorelease(object);
}

static id connection(void) { return shared_client; }

static bool is_option(id options, const char *key, const char *value) {
    id found = value_of(options, key);
    return found && is_kind(found, "NSString") && !strcmp(text_of(found), value);
}

static bool client_checks(const char *where, id of, id options) {
    bool right = expect(of, "_ANEModel", where, 1);
    return expect(options, "NSDictionary", where, 2) && right;
}

static bool client_compile(id client, SEL s, id of, id options, unsigned qos, id *error) {
    (void)client, (void)qos;
    if (!client_checks(sel_getName(s), of, options)) return refuse(error, DOMAIN, 1, "wrong arguments");
    if (fake_switches.client_refuses || !is_option(options, "kANEFModelType", "kANEFModelMIL") ||
        !is_option(options, "kANEFNetPlistFilenameKey", "model.mil"))
        return refuse(error, ESPRESSO, -1, "model.espresso.net is missing");
    return compile(of, text_of(((model *)payload(of))->first), error);
}

static bool client_load(id client, SEL s, id of, id options, unsigned qos, id *error) {
    (void)client, (void)qos;
    return client_checks(sel_getName(s), of, options) ? load(of, error) : refuse(error, DOMAIN, 6, "wrong arguments");
}

static bool client_evaluate(id client, SEL s, id of, id options, id asked, unsigned qos, id *error) {
    (void)client, (void)qos;
    return client_checks(sel_getName(s), of, options) ? evaluate(of, asked, sel_getName(s), error) : refuse(error, DOMAIN, 8, "wrong arguments");
}

static bool client_unload(id client, SEL s, id of, id options, unsigned qos, id *error) {
    (void)client, (void)qos;
    return client_checks(sel_getName(s), of, options) ? unload(of, error) : refuse(error, DOMAIN, 7, "wrong arguments");
}

static void client_purge(id client, SEL s, id of) {
    (void)client;
    if (expect(of, "_ANEModel", sel_getName(s), 1) && ((model *)payload(of))->state == LOADED)
        violation("purgeCompiledModel: of a loaded program");
}

// ---- _ANEInMemoryModelDescriptor and _ANEInMemoryModel

static id describe(Class of, SEL s, id text, id weights, id options) {
    if (options) violation("%s: optionsPlist is nil in every published call", sel_getName(s));
    if (!expect(text, "NSData", sel_getName(s), 1)) return NULL;  // crashes for an NSString
    if (!weights || !expect(weights, "NSDictionary", sel_getName(s), 2)) return NULL;
    id object = make_object(of);
    *(model *)payload(object) = (model){.first = retain(text), .second = retain(weights)};
    return autorelease(object);
}

static id in_memory(Class of, SEL s, id descriptor) {
    if (!expect(descriptor, "_ANEInMemoryModelDescriptor", sel_getName(s), 1)) return NULL;
    id object = make_object(of);
    *(model *)payload(object) = (model){.first = retain(descriptor), .state = CREATED};
    return autorelease(object);
}

static uint64_t hash(uint64_t h, const void *bytes, size_t length) {
    for (const unsigned char *c = bytes; length--; c++) h = (h ^ *c) * 0x100000001b3ull;
    return h;
}

static id identifier(id owner) {
    model *d = payload(((model *)payload(owner))->first);
    size_t length;
    const void *text = bytes_of(d->first, &length);
    uint64_t h[2] = {hash(0xcbf29ce484222325ull, text, length), 0xcbf29ce484222325ull};
    const id *keys;
    for (size_t i = 0, n = keys_of(d->second, &keys); i < n; i++) {
        id entry = value_of(d->second, text_of(keys[i]));
        id content = expect(entry, "NSDictionary", "weights", 1) ? value_of(entry, "data") : NULL;
        if (!expect(content, "NSData", "weights: data", 1)) continue;
        const void *bytes = bytes_of(content, &length);
        h[1] = hash(h[1], bytes, length);
    }
    char name[64];
    snprintf(name, sizeof name, "%016llX_%016llX", (unsigned long long)h[0], (unsigned long long)h[1]);
    return make_string(name);
}

static bool same_file(const char *folder, const char *name, id content) {
    char path[4096];
    size_t length;
    const char *bytes = bytes_of(content, &length);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    bool same = true;
    for (size_t i = 0; i <= length && same; i++) same = getc(file) == (i < length ? (unsigned char)bytes[i] : EOF);
    fclose(file);
    return same;
}

static bool staged(id owner, const char *folder) {
    model *d = payload(((model *)payload(owner))->first);
    bool same = same_file(folder, "model.mil", d->first);
    const id *keys;
    for (size_t i = 0, n = keys_of(d->second, &keys); i < n; i++) {
        const char *key = text_of(keys[i]), *prefix = "@model_path/";
        if (strncmp(key, prefix, strlen(prefix))) violation("weights: the key %s does not begin with %s", key, prefix);
        same = same && same_file(folder, key + strlen(prefix), value_of(value_of(d->second, key), "data"));
    }
    return same;
}

static bool memory_compile(id owner, SEL s, unsigned qos, id options, id *error) {
    (void)qos;
    char folder[4096];
    if (!expect(options, "NSDictionary", sel_getName(s), 2)) return refuse(error, DOMAIN, 1, "wrong arguments");
    if (fake_switches.compiles && compiled >= fake_switches.compiles)
        return refuse(error, COMPILER, 1, "_ANECompiler : ANECCompile() FAILED");
    snprintf(folder, sizeof folder, "%s/%s", temporary_folder(), text_of(identifier(owner)));
    if (!staged(owner, folder)) return refuse(error, COMPILER, 1, "_ANECompiler : InvalidMILProgram");
    return compile(owner, folder, error);
}

static bool memory_load(id owner, SEL s, unsigned qos, id options, id *error) {
    (void)qos;
    return expect(options, "NSDictionary", sel_getName(s), 2) ? load(owner, error) : refuse(error, DOMAIN, 6, "wrong arguments");
}

static bool memory_evaluate(id owner, SEL s, unsigned qos, id options, id asked, id *error) {
    (void)qos;
    if (!expect(options, "NSDictionary", sel_getName(s), 2)) return refuse(error, DOMAIN, 8, "wrong arguments");
    return evaluate(owner, asked, sel_getName(s), error);
}

static bool memory_unload(id owner, SEL s, unsigned qos, id *error) { return (void)s, (void)qos, unload(owner, error); }

// ---- _ANERequest and _ANEIOSurfaceObject

static id make_request(Class of, SEL s, id inputs, id input_indices, id outputs, id output_indices, id weights,
                       id statistics, id procedure) {
    id arrays[] = {inputs, input_indices, outputs, output_indices};
    bool right = expect(procedure, "NSNumber", sel_getName(s), 7);
    for (int i = 0; i < 4; i++) {
        right = expect(arrays[i], "NSArray", sel_getName(s), i + 1) && right;
        for (size_t k = 0; right && k < count_of(arrays[i]); k++)
            right = expect(item_of(arrays[i], k), i % 2 ? "NSNumber" : "_ANEIOSurfaceObject", sel_getName(s), i + 1);
    }
    if (weights || statistics) violation("%s: weightsBuffer and perfStats are nil in every published call", sel_getName(s));
    if (!right) return NULL;
    id object = make_object(of);
    request *r = payload(object);
    for (int i = 0; i < 4; i++) r->arrays[i] = retain(arrays[i]);
    r->procedure = retain(procedure);
    return autorelease(object);
}

static void drop_request(id object) {
    request *r = payload(object);
    for (int i = 0; i < 4; i++) release(r->arrays[i]);
    release(r->procedure);
}

static id surface_object(Class of, SEL s, id surface) {
    if (!expect(surface, "IOSurface", sel_getName(s), 1)) return NULL;
    id object = make_object(of);
    *(id *)payload(object) = retain(surface);
    return autorelease(object);
}

static void drop_surface(id object) { release(*(id *)payload(object)); }

#define REQUEST "requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:perfStats:procedureIndex:"
#ifndef EVALUATE_ENCODING  // another one is a private method that has changed
#define EVALUATE_ENCODING "B52@0:8@16@24@32I40^@44"
#endif

void forget_objects(void);

void fake_reset(on_compile at_compile, on_evaluate at_evaluate) {
    compile_callback = at_compile;
    evaluate_callback = at_evaluate;
    compiled = loaded = coherent_surfaces = 0;
    memset(&fake_switches, 0, sizeof fake_switches);
    shared_client = make_object(client_class);
    forget_objects();
}

CONSTRUCTOR(104) static void define(void) {
    client_class = make_class("_ANEClient", root_class, 0);
    model_class = make_class("_ANEModel", root_class, sizeof(model));
    descriptor_class = make_class("_ANEInMemoryModelDescriptor", root_class, sizeof(model));
    in_memory_class = make_class("_ANEInMemoryModel", root_class, sizeof(model));
    request_class = make_class("_ANERequest", root_class, sizeof(request));
    surface_class = make_class("_ANEIOSurfaceObject", root_class, sizeof(id));
    add_method(client_class, '+', "sharedConnection", "@16@0:8", connection);
    add_method(client_class, '-', "compileModel:options:qos:error:", "B44@0:8@16@24I32^@36", client_compile);
    add_method(client_class, '-', "loadModel:options:qos:error:", "B44@0:8@16@24I32^@36", client_load);
    add_method(client_class, '-', "evaluateWithModel:options:request:qos:error:", EVALUATE_ENCODING, client_evaluate);
    add_method(client_class, '-', "unloadModel:options:qos:error:", "B44@0:8@16@24I32^@36", client_unload);
    add_method(client_class, '-', "purgeCompiledModel:", "v24@0:8@16", client_purge);
    add_method(model_class, '+', "modelAtURL:key:", "@32@0:8@16@24", model_at);
    add_method(model_class, '-', "modelAttributes", "@16@0:8", attributes_of);
    add_method(model_class, '-', "dealloc", "v16@0:8", drop_model);
    add_method(descriptor_class, '+', "modelWithMILText:weights:optionsPlist:", "@40@0:8@16@24@32", describe);
    add_method(descriptor_class, '-', "dealloc", "v16@0:8", drop_model);
    add_method(in_memory_class, '+', "inMemoryModelWithDescriptor:", "@24@0:8@16", in_memory);
    add_method(in_memory_class, '-', "hexStringIdentifier", "@16@0:8", identifier);
    add_method(in_memory_class, '-', "compileWithQoS:options:error:", "B36@0:8I16@20^@28", memory_compile);
    add_method(in_memory_class, '-', "loadWithQoS:options:error:", "B36@0:8I16@20^@28", memory_load);
    add_method(in_memory_class, '-', "evaluateWithQoS:options:request:error:", "B44@0:8I16@20@28^@36", memory_evaluate);
    add_method(in_memory_class, '-', "unloadWithQoS:error:", "B28@0:8I16^@20", memory_unload);
    add_method(in_memory_class, '-', "modelAttributes", "@16@0:8", attributes_of);
    add_method(in_memory_class, '-', "dealloc", "v16@0:8", drop_model);
    add_method(request_class, '+', REQUEST, "@72@0:8@16@24@32@40@48@56@64", make_request);
    add_method(request_class, '-', "dealloc", "v16@0:8", drop_request);
    add_method(surface_class, '+', "objectWithIOSurface:", "@24@0:8^{__IOSurface=}16", surface_object);
    add_method(surface_class, '-', "dealloc", "v16@0:8", drop_surface);
}
