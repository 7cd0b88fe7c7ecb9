// The classes of Foundation that a client of the engine touches.
#pragma once
#include "runtime.h"

id make_string(const char *text);  // these give autoreleased objects
id constant_string(const char *text);  // but this one lives for ever
id make_data(const void *bytes, size_t length);
id make_number(int64_t value);
id make_array(const id *objects, size_t count);
id make_dictionary(const id *values, const id *keys, size_t count);
id make_error(const char *domain, int code, const char *said);  // but this one has a reference
const char *text_of(id string);
const void *bytes_of(id data, size_t *length);
int64_t number_of(id number);
size_t count_of(id array);
id item_of(id array, size_t index);
id value_of(id dictionary, const char *key);  // of a string key; NULL when there is none
size_t keys_of(id dictionary, const id **keys);
const char *temporary_folder(void);
