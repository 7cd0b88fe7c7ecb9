// NSString, NSData, NSNumber, NSArray, NSDictionary, NSURL and NSError; see foundation.h.
#include "foundation.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t length;
    char *bytes;
} buffer;

typedef struct {
    size_t count;
    id *values, *keys;
} collection;

typedef struct {
    id domain, said;
    int64_t code;
} failure;

static Class string, data, number, array, dictionary, url, error;

static id new_bytes(Class of, const void *bytes, size_t length) {
    id object = make_object(of);
    buffer *b = payload(object);
    *b = (buffer){length, calloc(1, length + 1)};
    if (length) memcpy(b->bytes, bytes, length);
    return object;
}

static id with_bytes(Class of, const void *bytes, size_t length) { return autorelease(new_bytes(of, bytes, length)); }
id constant_string(const char *text) { return new_bytes(string, text, strlen(text)); }

id make_string(const char *text) { return with_bytes(string, text, strlen(text)); }
id make_data(const void *bytes, size_t length) { return with_bytes(data, bytes, length); }
const char *text_of(id object) { return ((buffer *)payload(object))->bytes; }

const void *bytes_of(id object, size_t *length) {
    buffer *b = payload(object);
    *length = b->length;
    return b->bytes;
}

static void drop_bytes(id object) { free(((buffer *)payload(object))->bytes); }

id make_number(int64_t value) {
    id object = make_object(number);
    *(int64_t *)payload(object) = value;
    return autorelease(object);
}

int64_t number_of(id object) { return *(int64_t *)payload(object); }

static id collect(Class of, const id *values, const id *keys, size_t count) {
    id object = make_object(of);
    collection *c = payload(object);
    *c = (collection){count, calloc(count + 1, sizeof(id)), calloc(count + 1, sizeof(id))};
    for (size_t i = 0; i < count; i++) {
        if (!values[i]) violation("%s: object %zu is nil", of == array ? "NSArray" : "NSDictionary", i);
        c->values[i] = retain(values[i]);
        if (keys) c->keys[i] = retain(keys[i]);
    }
    return autorelease(object);
}

id make_array(const id *objects, size_t count) { return collect(array, objects, NULL, count); }
id make_dictionary(const id *values, const id *keys, size_t count) { return collect(dictionary, values, keys, count); }

static void drop_items(id object) {
    collection *c = payload(object);
    for (size_t i = 0; i < c->count; i++) {
        release(c->values[i]);
        release(c->keys[i]);
    }
    free(c->values);
    free(c->keys);
}

size_t count_of(id object) { return ((collection *)payload(object))->count; }

id item_of(id object, size_t index) {
    collection *c = payload(object);
    if (index < c->count) return c->values[index];
    violation("-[NSArray objectAtIndex:]: %zu of %zu", index, c->count);
    return NULL;
}

size_t keys_of(id object, const id **keys) {
    collection *c = payload(object);
    *keys = c->keys;
    return c->count;
}

id value_of(id object, const char *key) {
    collection *c = payload(object);
    for (size_t i = 0; i < c->count; i++)
        if (is_kind(c->keys[i], "NSString") && !strcmp(text_of(c->keys[i]), key)) return c->values[i];
    return NULL;
}

id make_error(const char *domain, int code, const char *said) {
    id object = make_object(error);
    failure *f = payload(object);
    *f = (failure){retain(make_string(domain)), retain(make_string(said)), code};
    return object;
}

static void drop_error(id object) {
    failure *f = payload(object);
    release(f->domain);
    release(f->said);
}

const char *temporary_folder(void) {
    const char *folder = getenv("TMPDIR");
    return folder ? folder : "/tmp";
}

id NSTemporaryDirectory(void) { return fails("NSTemporaryDirectory") ? NULL : make_string(temporary_folder()); }

// ---- methods

static id string_with(Class of, SEL s, const char *text) { return (void)of, (void)s, make_string(text); }
static const char *utf8(id object) { return text_of(object); }
static id data_with(Class of, SEL s, const void *b, size_t n) { return (void)of, (void)s, make_data(b, n); }
static id number_with(Class of, SEL s, int64_t value) { return (void)of, (void)s, make_number(value); }
static id array_with(Class of, SEL s, const id *v, size_t n) { return (void)of, (void)s, make_array(v, n); }
static id at_index(id object, SEL s, size_t index) { return (void)s, item_of(object, index); }

static id dictionary_with(Class of, SEL s, const id *values, const id *keys, size_t count) {
    return (void)of, (void)s, make_dictionary(values, keys, count);
}

static id all_keys(id object) {
    collection *c = payload(object);
    return make_array(c->keys, c->count);
}

static id object_for_key(id object, SEL s, id key) {
    return expect(key, "NSString", sel_getName(s), 1) ? value_of(object, text_of(key)) : NULL;
}

static id url_with(Class of, SEL s, id path, bool folder) {
    (void)s;
    if (!expect(path, "NSString", "+[NSURL fileURLWithPath:isDirectory:]", 1)) return NULL;
    if (!folder) violation("+[NSURL fileURLWithPath:isDirectory:]: a program lies in a folder");
    return with_bytes(of, text_of(path), strlen(text_of(path)));
}

static id domain_of(id object) { return ((failure *)payload(object))->domain; }
static id said_of(id object) { return ((failure *)payload(object))->said; }
static int64_t code_of(id object) { return ((failure *)payload(object))->code; }

// ---- NSProcessInfo

int fake_low_power, fake_thermal_state;
static id process_info;

static id shared_process_info(void) { return process_info; }
static bool low_power(void) { return fake_low_power; }
static int64_t thermal_state(void) { return fake_thermal_state; }

CONSTRUCTOR(102) static void define(void) {
    string = make_class("NSString", root_class, sizeof(buffer));
    data = make_class("NSData", root_class, sizeof(buffer));
    number = make_class("NSNumber", root_class, sizeof(int64_t));
    array = make_class("NSArray", root_class, sizeof(collection));
    dictionary = make_class("NSDictionary", root_class, sizeof(collection));
    url = make_class("NSURL", root_class, sizeof(buffer));
    error = make_class("NSError", root_class, sizeof(failure));
    Class information = make_class("NSProcessInfo", root_class, 0);
    process_info = make_object(information);
    add_method(information, '+', "processInfo", "@16@0:8", shared_process_info);
    add_method(information, '-', "isLowPowerModeEnabled", "B16@0:8", low_power);
    add_method(information, '-', "thermalState", "q16@0:8", thermal_state);
    add_method(string, '+', "stringWithUTF8String:", "@24@0:8r*16", string_with);
    add_method(string, '-', "UTF8String", "r*16@0:8", utf8);
    add_method(string, '-', "dealloc", "v16@0:8", drop_bytes);
    add_method(data, '+', "dataWithBytes:length:", "@32@0:8r^v16Q24", data_with);
    add_method(data, '-', "dealloc", "v16@0:8", drop_bytes);
    add_method(number, '+', "numberWithLongLong:", "@24@0:8q16", number_with);
    add_method(number, '-', "longLongValue", "q16@0:8", number_of);
    add_method(array, '+', "arrayWithObjects:count:", "@32@0:8r^@16Q24", array_with);
    add_method(array, '-', "count", "Q16@0:8", count_of);
    add_method(array, '-', "objectAtIndex:", "@24@0:8Q16", at_index);
    add_method(array, '-', "dealloc", "v16@0:8", drop_items);
    add_method(dictionary, '+', "dictionaryWithObjects:forKeys:count:", "@40@0:8r^@16r^@24Q32", dictionary_with);
    add_method(dictionary, '-', "allKeys", "@16@0:8", all_keys);
    add_method(dictionary, '-', "objectForKey:", "@24@0:8@16", object_for_key);
    add_method(dictionary, '-', "dealloc", "v16@0:8", drop_items);
    add_method(url, '+', "fileURLWithPath:isDirectory:", "@28@0:8@16B24", url_with);
    add_method(url, '-', "dealloc", "v16@0:8", drop_bytes);
    add_method(error, '-', "domain", "@16@0:8", domain_of);
    add_method(error, '-', "code", "q16@0:8", code_of);
    add_method(error, '-', "localizedDescription", "@16@0:8", said_of);
    add_method(error, '-', "dealloc", "v16@0:8", drop_error);
}
