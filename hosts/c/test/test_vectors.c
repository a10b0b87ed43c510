/* The conformance vectors, replayed. Each vector is one line of its file. */
#include "../vllmport.c"

static int failures, replayed;
static char line[1 << 18];

static void check(bool holds, const char *what)
{
    replayed++;
    if (!holds) {
        failures++;
        fprintf(stderr, "%s: %.120s\n", what, line);
    }
}

/* Turn the hexadecimal text after `key` into bytes; -1 if there is none. */
static long hex_after(const char *from, const char *key, char *to)
{
    const char *text = strstr(from, key);
    long size = 0;
    if (text == NULL)
        return -1;
    for (text += strlen(key); *text != '"'; text += 2, size++)
        to[size] = (char)strtol((char[]){text[0], text[1], 0}, NULL, 16);
    return size;
}

static long number_after(const char *from, const char *key)
{
    const char *text = strstr(from, key);
    return text == NULL ? 0 : strtol(text + strlen(key), NULL, 10);
}

static const char *text_after(const char *from, const char *key, char *to)
{
    const char *text = strstr(from, key);
    to[0] = '\0';
    if (text != NULL)
        sscanf(text + strlen(key), "%63[^\"]", to);
    return to;
}

static bool comes_back(const char *data, long size)
{
    batch *value = read_value(data, (size_t)size);
    msgpack_sbuffer again;
    msgpack_packer packer;
    bool same;
    if (value == NULL)
        return false;
    msgpack_sbuffer_init(&again);
    msgpack_packer_init(&packer, &again, msgpack_sbuffer_write);
    msgpack_pack_object(&packer, value->unpacked.data);
    same = again.size == (size_t)size && memcmp(again.data, data, again.size) == 0;
    msgpack_sbuffer_destroy(&again);
    release(value);
    return same;
}

static bool is_read(const char *data, long size)
{
    batch *value = read_value(data, (size_t)size);
    release(value);
    return value != NULL;
}

/* The bodies of known extension types are handed on, and so is text that is no UTF-8. */
static bool is_handed_on(void)
{
    return strstr(line, "UTF-8") != NULL ||
           (strstr(line, "\"c9000000") != NULL && strstr(line, "extension type\"") == NULL);
}

static void replay_values(const char *group)
{
    static char bytes[1 << 16];
    long size = hex_after(line, "\"payload\": \"", bytes);
    if (strcmp(group, "same") == 0)
        check(comes_back(bytes, size), "not the same bytes");
    else if (strcmp(group, "read") == 0)
        check(is_read(bytes, size), "not read");
    else if (!is_handed_on())
        check(!is_read(bytes, size), "not refused");
}

static bool is_supervisors(const char *data, long size)
{
    batch *value = read_value(data, (size_t)size);
    bool good = value != NULL && is_header(&value->unpacked.data);
    release(value);
    return good;
}

static void replay_messages(const char *group)
{
    static char bytes[1 << 16];
    char kind[64];
    long size;
    if (strcmp(group, "same") == 0) {
        size = hex_after(line, "\"frames\": [\"", bytes);
        text_after(line, "\"kind\": \"", kind);
        check(comes_back(bytes, size), "not the same header");
        check(is_supervisors(bytes, size) == (strstr("WELCOME RESULT ITEMS END ERROR PONG BYE", kind) != NULL),
              "a kind that a supervisor sends, or not");
    } else if (strcmp(group, "refused") == 0) {
        size = hex_after(line, "\"header\": \"", bytes);
        check(!is_supervisors(bytes, size), "not refused");
    }
}

static vp_call *add_call(vp_pool *pool, long id)
{
    vp_call *call = calloc(1, sizeof *call);
    call->pool = pool;
    call->id = (uint64_t)id;
    call->next = pool->calls;
    return pool->calls = call;
}

static void hand_over(vp_pool *pool, const char *message)
{
    static char header[1 << 12], payload[1 << 16];
    const char *frames = strstr(message, "\"frames\": [\"");
    long header_size = hex_after(frames, "[\"", header);
    long payload_size = hex_after(frames, "\", \"", payload);
    handle(pool, header, (size_t)header_size, payload, (size_t)payload_size);
}

static void replay_error(const char *group)
{
    vp_pool pool = {0};
    vp_call *call = add_call(&pool, 7);
    vp_error error;
    char expected[64];
    if (strcmp(group, "messages") == 0) {
        hand_over(&pool, line);
        text_after(line, "\"code\": \"", expected);
        check(vp_next(call, NULL, &error) == VP_FAILED && strcmp(error.code, expected) == 0, "code");
        check(error.retryable == (strstr(line, "\"retryable\": true") != NULL), "retryable");
        check(strcmp(error.phase, text_after(line, "\"phase\": \"", expected)) == 0, "phase");
        check(error.attempt == number_after(line, "\"attempt\": "), "attempt");
    }
    vp_end(call);
}

static long count(const char *from, const char *to, const char *what)
{
    long found = 0;
    while ((from = strstr(from, what)) != NULL && (to == NULL || from < to)) {
        found++;
        from++;
    }
    return found;
}

/* Whether a call ends as the vector says. */
static bool ends_as(vp_call *call, const char *told)
{
    const char *end = strstr(told + 1, "{\"id\": ");
    char expected[64] = "";
    vp_error error;
    long items = 0;
    vp_event got;
    while ((got = vp_next(call, NULL, &error)) == VP_ITEM)
        items++;
    if (end == NULL || strstr(told, "\"error\": \"") < end)
        text_after(told, "\"error\": \"", expected);
    if (*expected != '\0')
        return got == VP_FAILED && strcmp(error.code, expected) == 0;
    return got == VP_DONE && items == count(told, end, "[\"text\", \"outputs\"]");
}

static void replay_sequence(void)
{
    vp_pool pool = {0};
    const char *calls = strstr(line, "\"calls\": [");
    for (const char *said = line; (said = strstr(said, "{\"from\": \"")) != NULL && said < calls; said++) {
        if (strncmp(said, "{\"from\": \"supervisor", 20) == 0)
            hand_over(&pool, said);
        else if (strstr(said, "\"kind\": \"CALL\"") == strstr(said, "\"kind\": "))
            add_call(&pool, number_after(said, "\"id\": "));
    }
    for (const char *told = calls; (told = strstr(told, "{\"id\": ")) != NULL; told++) {
        uint64_t id = (uint64_t)number_after(told, "\"id\": ");
        vp_call *call = pool.calls;
        while (call != NULL && call->id != id)
            call = call->next;
        check(call != NULL && ends_as(call, told), "a call ends otherwise");
    }
    while (pool.calls != NULL)
        vp_end(pool.calls);
}

static void replay_file(const char *folder, const char *name)
{
    char path[4096], group[64] = "";
    FILE *file;
    snprintf(path, sizeof path, "%s/%s.json", folder, name);
    file = fopen(path, "r");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "  \"", 3) == 0)
            text_after(line, "\"", group);
        else if (strncmp(line, "    {", 5) != 0)
            continue;
        else if (strcmp(name, "values") == 0)
            replay_values(group);
        else if (strcmp(name, "messages") == 0)
            replay_messages(group);
        else if (strcmp(name, "errors") == 0)
            replay_error(group);
        else
            replay_sequence();
    }
    fclose(file);
}

int main(int argc, char **argv)
{
    const char *files[] = {"values", "messages", "errors", "sequences"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        replay_file(argc > 1 ? argv[1] : ".", files[i]);
    printf("vectors: %d checks, %d failures\n", replayed, failures);
    return failures != 0 || replayed < 100;
}
