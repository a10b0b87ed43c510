/* One connection to a supervisor at a time, and the calls that are open on it. See vllmport.h. */
#define _GNU_SOURCE
#include "vllmport.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum {
    PROTOCOL_VERSION = 1,
    MAX_FRAME = 67108864,
    MAX_FRAMES = 66,
    MAX_TIMEOUT_MS = 2000000000,
    WINDOW = 256, /* items of a stream that may be on their way before more are granted */
    GREETING_MS = 5000,
    PROBE_MS = 1000, /* somebody may take to accept a connection */
    GRACE_MS = 2000, /* after a deadline, before this end gives up on an answer */
    PATIENCE_MS = 10000,
    LINGER_MS = 200,
};

enum { HELLO = 1, WELCOME = 2, CALL = 10, CANCEL = 11, CREDIT = 12, RESULT = 13, ITEMS = 14 };
enum { END = 15, ERROR = 16, PONG = 21, BYE = 22 };

#define PRODUCT "0.1.0"
#define KEY_SIZE 41 /* of Z85, with the end of the text */
#define Z85 "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

/* A received value, shared by the events that point into it; it points into its own bytes. */
typedef struct batch {
    int holders;
    msgpack_unpacked unpacked;
    char data[];
} batch;

typedef struct event {
    struct event *next;
    vp_event kind;
    batch *batch; /* NULL where there is no value */
    const msgpack_object *value;
    vp_error error;
} event;

struct vp_call {
    vp_call *next;
    vp_pool *pool;
    uint64_t id;
    uint64_t connection; /* on which of the pool's connections it was made */
    double give_up;      /* when this end stops waiting; seconds */
    bool stream;
    bool ended;   /* the terminal event has arrived, it may still have to be read */
    unsigned read; /* items read since credit was granted */
    event *first, *last, *current;
};

/* A model that was loaded through this handle. */
typedef struct lease {
    struct lease *next;
    char *name;
    msgpack_sbuffer args;
    double timeout;
    uint64_t connection;
} lease;

/* Of CURVE, in Z85, for pools that listen on TCP. */
typedef struct key_ring {
    char server[KEY_SIZE], public[KEY_SIZE], secret[KEY_SIZE];
} key_ring;

struct vp_pool {
    char *endpoint;
    bool over_tcp;
    key_ring keys;
    void *context;
    void *socket, *monitor; /* NULL while there is no connection */
    uint64_t connection;    /* counts connections */
    uint64_t last_id;
    bool welcomed;
    char epoch[64];
    vp_error refused; /* why the last connection ended */
    vp_call *calls;
    lease *leases;
};

/* Small things. */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void set_error(vp_error *error, const char *code, bool retryable, const char *format, ...)
{
    va_list args;
    memset(error, 0, sizeof *error);
    snprintf(error->code, sizeof error->code, "%s", code);
    error->retryable = retryable;
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
}

static void copy_text(char *to, size_t size, const msgpack_object *from)
{
    if (from != NULL && from->type == MSGPACK_OBJECT_STR)
        snprintf(to, size, "%.*s", (int)from->via.str.size, from->via.str.ptr);
}

static uint64_t unsigned_of(const msgpack_object *object)
{
    return object->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? object->via.u64 : 0;
}

/* Values. */

static void release(batch *shared)
{
    if (shared != NULL && --shared->holders == 0) {
        msgpack_unpacked_destroy(&shared->unpacked);
        free(shared);
    }
}

/* Whether all extension types in a value are known ones. */
static bool is_known(const msgpack_object *value)
{
    switch (value->type) {
    case MSGPACK_OBJECT_EXT:
        return value->via.ext.type == -1 || (value->via.ext.type >= 1 && value->via.ext.type <= 13);
    case MSGPACK_OBJECT_ARRAY:
        for (uint32_t i = 0; i < value->via.array.size; i++)
            if (!is_known(&value->via.array.ptr[i]))
                return false;
        return true;
    case MSGPACK_OBJECT_MAP:
        for (uint32_t i = 0; i < value->via.map.size; i++)
            if (!is_known(&value->via.map.ptr[i].key) || !is_known(&value->via.map.ptr[i].val))
                return false;
        return true;
    default:
        return true;
    }
}

/* Read exactly one value; NULL if the bytes are none. */
static batch *read_value(const char *data, size_t size)
{
    batch *shared = malloc(sizeof *shared + size);
    size_t offset = 0;
    shared->holders = 1;
    memcpy(shared->data, data, size);
    msgpack_unpacked_init(&shared->unpacked);
    if (msgpack_unpack_next(&shared->unpacked, shared->data, size, &offset) == MSGPACK_UNPACK_SUCCESS &&
        offset == size && is_known(&shared->unpacked.data))
        return shared;
    release(shared);
    return NULL;
}

const msgpack_object *vp_at(const msgpack_object *value, const char *path)
{
    while (value != NULL && *path != '\0') {
        size_t length = strcspn(path, ".");
        const msgpack_object *found = NULL;
        if (value->type == MSGPACK_OBJECT_MAP) {
            for (uint32_t i = 0; i < value->via.map.size && found == NULL; i++) {
                const msgpack_object *key = &value->via.map.ptr[i].key;
                if (key->type == MSGPACK_OBJECT_STR && key->via.str.size == length &&
                    memcmp(key->via.str.ptr, path, length) == 0)
                    found = &value->via.map.ptr[i].val;
            }
        } else if (value->type == MSGPACK_OBJECT_ARRAY) {
            unsigned long index = strtoul(path, NULL, 10);
            if (index < value->via.array.size)
                found = &value->via.array.ptr[index];
        }
        value = found;
        path += length + (path[length] == '.');
    }
    return value;
}

const char *vp_text(const msgpack_object *value, const char *path, int *size)
{
    const msgpack_object *found = vp_at(value, path);
    bool text = found != NULL && found->type == MSGPACK_OBJECT_STR;
    *size = text ? (int)found->via.str.size : 0;
    return text ? found->via.str.ptr : "";
}

long vp_integer(const msgpack_object *value, const char *path)
{
    const msgpack_object *found = vp_at(value, path);
    if (found == NULL)
        return 0;
    if (found->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
        return (long)found->via.i64;
    return (long)unsigned_of(found);
}

static const char *after(const char *format)
{
    return format + strspn(format, " ,:");
}

/* Skip one value of a format; NULL if there is none. */
static const char *skip(const char *format)
{
    char close = *format == '{' ? '}' : *format == '[' ? ']' : '\0';
    if (close == '\0')
        return *format != '\0' && strchr("sifbno", *format) != NULL ? format + 1 : NULL;
    format = after(format + 1);
    while (format != NULL && *format != close) {
        format = skip(format);
        format = format == NULL ? NULL : after(format);
    }
    return format == NULL ? NULL : format + 1;
}

static const char *pack_one(msgpack_packer *packer, const char *format, va_list *args)
{
    char close = *format == '{' ? '}' : ']';
    const char *text;
    size_t count = 0;
    switch (*format) {
    case 's':
        text = va_arg(*args, const char *);
        msgpack_pack_str(packer, strlen(text));
        msgpack_pack_str_body(packer, text, strlen(text));
        return format + 1;
    case 'i':
        msgpack_pack_int64(packer, va_arg(*args, long));
        return format + 1;
    case 'f':
        msgpack_pack_double(packer, va_arg(*args, double));
        return format + 1;
    case 'b':
        va_arg(*args, int) ? msgpack_pack_true(packer) : msgpack_pack_false(packer);
        return format + 1;
    case 'n':
        msgpack_pack_nil(packer);
        return format + 1;
    case 'o':
        msgpack_pack_object(packer, *va_arg(*args, const msgpack_object *));
        return format + 1;
    }
    for (const char *item = after(format + 1); *item != close; item = after(skip(item)))
        count++;
    if (close == '}')
        msgpack_pack_map(packer, count / 2);
    else
        msgpack_pack_array(packer, count);
    for (format = after(format + 1); *format != close; format = after(format))
        format = pack_one(packer, format, args);
    return format + 1;
}

bool vp_pack(msgpack_sbuffer *buffer, const char *format, ...)
{
    msgpack_packer packer;
    va_list args;
    const char *end = skip(format);
    msgpack_sbuffer_clear(buffer);
    if (end == NULL || *end != '\0')
        return false;
    msgpack_packer_init(&packer, buffer, msgpack_sbuffer_write);
    va_start(args, format);
    pack_one(&packer, format, &args);
    va_end(args);
    return true;
}

/* Events of calls. */

static void push(vp_call *call, vp_event kind, batch *shared, const msgpack_object *value,
                 const vp_error *error)
{
    event *new = calloc(1, sizeof *new);
    new->kind = kind;
    new->value = value;
    new->batch = shared;
    if (shared != NULL)
        shared->holders++;
    if (error != NULL)
        new->error = *error;
    if (call->last != NULL)
        call->last->next = new;
    else
        call->first = new;
    call->last = new;
    call->ended = kind != VP_ITEM;
}

static vp_call *open_call(vp_pool *pool, uint64_t id)
{
    vp_call *call = pool->calls;
    while (call != NULL && (call->id != id || call->connection != pool->connection))
        call = call->next;
    return call == NULL || call->ended ? NULL : call;
}

static void free_event(event *old)
{
    if (old != NULL) {
        release(old->batch);
        free(old);
    }
}

/* The connection. */

static void disconnect(vp_pool *pool, const vp_error *why)
{
    pool->refused = *why;
    for (vp_call *call = pool->calls; call != NULL; call = call->next)
        if (!call->ended && call->connection == pool->connection)
            push(call, VP_FAILED, NULL, NULL, why);
    if (pool->socket != NULL) {
        zmq_socket_monitor(pool->socket, NULL, 0);
        zmq_close(pool->monitor);
        zmq_close(pool->socket);
        pool->socket = pool->monitor = NULL;
    }
}

static void lose(vp_pool *pool, const char *why)
{
    vp_error error;
    set_error(&error, "pool_lost", true, "%s", why);
    disconnect(pool, &error);
}

static void break_off(vp_pool *pool, const char *why)
{
    vp_error error;
    set_error(&error, "protocol_error", false, "%s", why);
    disconnect(pool, &error);
}

/* The connection ended before anything was said on it. */
static void refuse(vp_pool *pool)
{
    vp_error error;
    if (pool->over_tcp)
        set_error(&error, "permission_denied", false, "%s refused the connection: the pool does not know this key, or the server key is not its public key", pool->endpoint);
    else
        set_error(&error, "connect_failed", true, "%s ended the connection before it began", pool->endpoint);
    snprintf(error.phase, sizeof error.phase, "connect");
    disconnect(pool, &error);
}

/* Whether a message can be sent. Without a connection it would wait for ever. */
static bool has_room(vp_pool *pool)
{
    zmq_pollitem_t items[] = {{.socket = pool->socket, .events = ZMQ_POLLOUT},
                              {.socket = pool->monitor, .events = ZMQ_POLLIN}};
    if (pool->socket == NULL)
        return false;
    zmq_poll(items, 2, GREETING_MS);
    if (items[0].revents != 0)
        return true;
    if (items[1].revents != 0 && !pool->welcomed)
        refuse(pool);
    else
        lose(pool, items[1].revents != 0 ? "the supervisor is gone" : "the pool takes no more messages");
    return false;
}

static void send_frames(vp_pool *pool, const msgpack_sbuffer *header, const msgpack_sbuffer *payload)
{
    const char nil = (char)0xc0;
    if (!has_room(pool))
        return;
    zmq_send(pool->socket, header->data, header->size, ZMQ_SNDMORE);
    if (payload != NULL)
        zmq_send(pool->socket, payload->data, payload->size, 0);
    else
        zmq_send(pool->socket, &nil, 1, 0);
}

static void send_numbers(vp_pool *pool, const char *format, long kind, long id, long room)
{
    msgpack_sbuffer header;
    msgpack_sbuffer_init(&header);
    vp_pack(&header, format, kind, id, room);
    send_frames(pool, &header, NULL);
    msgpack_sbuffer_destroy(&header);
}

static void fail_call(vp_pool *pool, uint64_t id, const msgpack_object *fields, batch *details)
{
    vp_call *call = open_call(pool, id);
    vp_error error = {.retryable = vp_at(fields, "4") != NULL && vp_at(fields, "4")->via.boolean};
    copy_text(error.code, sizeof error.code, vp_at(fields, "2"));
    copy_text(error.message, sizeof error.message, vp_at(fields, "3"));
    copy_text(error.phase, sizeof error.phase, vp_at(fields, "5"));
    copy_text(error.worker, sizeof error.worker, vp_at(fields, "6"));
    error.attempt = (int)vp_integer(fields, "7");
    error.tokens = vp_integer(&details->unpacked.data, "tokens");
    copy_text(error.exit, sizeof error.exit, vp_at(&details->unpacked.data, "exit"));
    if (id == 0)
        disconnect(pool, &error);
    else if (call != NULL)
        push(call, VP_FAILED, NULL, NULL, &error);
}

static void take_entries(vp_pool *pool, vp_event kind, const msgpack_object *entries, batch *values)
{
    const msgpack_object *listed = &values->unpacked.data;
    if (listed->type != MSGPACK_OBJECT_ARRAY || listed->via.array.size != entries->via.array.size) {
        break_off(pool, "a batch has one value for each entry");
        return;
    }
    for (uint32_t i = 0; i < entries->via.array.size; i++) {
        uint64_t id = (uint64_t)vp_integer(&entries->via.array.ptr[i], "0");
        vp_call *call = open_call(pool, id);
        if (call != NULL)
            push(call, kind, values, &listed->via.array.ptr[i], NULL);
    }
}

/* What a supervisor says, and of which types: i integer, t text, b boolean, p pairs of integers. */
static const struct {
    int kind;
    const char *required, *optional;
} KINDS[] = {
    {WELCOME, "itti", ""}, {RESULT, "i", "iti"}, {ITEMS, "p", "i"}, {END, "p", "it"},
    {ERROR, "itt", "bttii"}, {PONG, "i", ""}, {BYE, "", "t"},
};

static bool is_integer(const msgpack_object *value)
{
    return value->type == MSGPACK_OBJECT_NEGATIVE_INTEGER ||
           (value->type == MSGPACK_OBJECT_POSITIVE_INTEGER && value->via.u64 <= INT64_MAX);
}

static bool is_pair(const msgpack_object *value)
{
    return value->type == MSGPACK_OBJECT_ARRAY && value->via.array.size == 2 &&
           is_integer(&value->via.array.ptr[0]) && is_integer(&value->via.array.ptr[1]);
}

static bool is_field(const msgpack_object *value, char type)
{
    if (type == 'i')
        return is_integer(value);
    if (type == 't')
        return value->type == MSGPACK_OBJECT_STR;
    if (type == 'b')
        return value->type == MSGPACK_OBJECT_BOOLEAN;
    if (value->type != MSGPACK_OBJECT_ARRAY)
        return false;
    for (uint32_t i = 0; i < value->via.array.size; i++)
        if (!is_pair(&value->via.array.ptr[i]))
            return false;
    return true;
}

/* Whether a value is the header of something that a supervisor says. */
static bool is_header(const msgpack_object *header)
{
    if (header->type != MSGPACK_OBJECT_ARRAY || header->via.array.size == 0)
        return false;
    for (size_t kind = 0; kind < sizeof KINDS / sizeof *KINDS; kind++) {
        size_t required = strlen(KINDS[kind].required), all = required + strlen(KINDS[kind].optional);
        if (!is_integer(&header->via.array.ptr[0]) || vp_integer(header, "0") != KINDS[kind].kind)
            continue;
        for (size_t i = 0; i < all && i + 1 < header->via.array.size; i++)
            if (!is_field(&header->via.array.ptr[i + 1], i < required ? KINDS[kind].required[i] : KINDS[kind].optional[i - required]))
                return false;
        return header->via.array.size > required;
    }
    return false;
}

static void take(vp_pool *pool, const msgpack_object *header, batch *value)
{
    uint64_t id = (uint64_t)vp_integer(header, "1");
    vp_call *call;
    switch (vp_integer(header, "0")) {
    case WELCOME:
        copy_text(pool->epoch, sizeof pool->epoch, vp_at(header, "3"));
        pool->welcomed = true;
        break;
    case RESULT:
        call = open_call(pool, id);
        if (call != NULL)
            push(call, VP_DONE, value, &value->unpacked.data, NULL);
        break;
    case ITEMS:
        take_entries(pool, VP_ITEM, vp_at(header, "1"), value);
        break;
    case END:
        take_entries(pool, VP_DONE, vp_at(header, "1"), value);
        break;
    case ERROR:
        fail_call(pool, id, header, value);
        break;
    case PONG:
        break;
    case BYE:
        lose(pool, "the supervisor left");
        break;
    }
}

/* Take the frames of one message. Buffers are of no use here: they hold arrays. */
static void handle(vp_pool *pool, const char *header, size_t header_size, const char *payload,
                   size_t payload_size)
{
    batch *fields = read_value(header, header_size);
    batch *value = read_value(payload, payload_size);
    if (fields == NULL || value == NULL || !is_header(&fields->unpacked.data))
        break_off(pool, "a message that cannot be read");
    else
        take(pool, &fields->unpacked.data, value);
    release(fields);
    release(value);
}

/* Handle the next message, if there is one. */
static bool receive(vp_pool *pool)
{
    zmq_msg_t frames[MAX_FRAMES + 1];
    int count = 0, more = 1;
    while (more && count <= MAX_FRAMES) {
        zmq_msg_init(&frames[count]);
        if (zmq_msg_recv(&frames[count], pool->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frames[count]);
            break; /* EAGAIN: messages arrive whole, so it is before the first frame */
        }
        more = zmq_msg_more(&frames[count++]);
    }
    if (count > 0 && (more || count < 2))
        break_off(pool, "a message has 2 to 66 frames");
    else if (count > 0)
        handle(pool, zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), zmq_msg_data(&frames[1]),
               zmq_msg_size(&frames[1]));
    for (int i = 0; i < count; i++)
        zmq_msg_close(&frames[i]);
    return count > 0;
}

/* Handle what there is; if there is nothing, wait for it until `end`. Whether there was something. */
static bool pump(vp_pool *pool, double end)
{
    double left = (end - now()) * 1000;
    zmq_pollitem_t items[] = {{.socket = pool->socket, .events = ZMQ_POLLIN},
                              {.socket = pool->monitor, .events = ZMQ_POLLIN}};
    bool some = false;
    while (pool->socket != NULL && receive(pool))
        some = true;
    if (some)
        return true;
    zmq_poll(items, 2, isinf(end) || left > MAX_TIMEOUT_MS ? -1 : left > 0 ? (long)ceil(left) : 0);
    if (items[0].revents == 0 && items[1].revents != 0) {
        if (pool->welcomed)
            lose(pool, "the supervisor is gone");
        else
            refuse(pool);
    }
    return false;
}

/* Try whether somebody accepts a connection; 0, or why not. */
static int attempt(int family, const struct sockaddr *address, socklen_t size)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), failed = 0;
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    socklen_t length = sizeof failed;
    if (fd < 0)
        return errno;
    if (connect(fd, address, size) != 0)
        failed = errno;
    if (failed == EINPROGRESS) {
        if (poll(&writable, 1, PROBE_MS) != 1)
            failed = ETIMEDOUT;
        else
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &length);
    }
    close(fd);
    return failed;
}

static int attempt_local(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return ENAMETOOLONG;
    strcpy(address.sun_path, path);
    return attempt(AF_UNIX, (struct sockaddr *)&address, sizeof address);
}

/* HOST:PORT or [HOST]:PORT; EINVAL for anything else. */
static int attempt_tcp(const char *where)
{
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    const char *colon = strrchr(where, ':');
    char host[256];
    size_t brackets = *where == '[', size = colon == NULL ? 0 : (size_t)(colon - where);
    int failed = EHOSTUNREACH;
    if (size <= 2 * brackets || size >= sizeof host || strspn(colon + 1, "0123456789") != strlen(colon + 1) || colon[1] == '\0')
        return EINVAL;
    snprintf(host, sizeof host, "%.*s", (int)(size - 2 * brackets), where + brackets);
    if (getaddrinfo(host, colon + 1, &wanted, &found) != 0)
        return EHOSTUNREACH;
    for (struct addrinfo *each = found; each != NULL && failed != 0; each = each->ai_next)
        failed = attempt(each->ai_family, each->ai_addr, each->ai_addrlen);
    freeaddrinfo(found);
    return failed;
}

/* Say at once if nobody can be behind an endpoint. */
static bool probe(const vp_pool *pool, vp_error *error)
{
    bool is_local = strncmp(pool->endpoint, "ipc:///", 7) == 0;
    int failed = EINVAL;
    if (is_local || pool->over_tcp)
        failed = is_local ? attempt_local(pool->endpoint + 6) : attempt_tcp(pool->endpoint + 6);
    if (failed == EINVAL || failed == ENAMETOOLONG)
        set_error(error, "invalid_request", false, "an endpoint looks like ipc:///run/user/1000/vllmport/pool.sock or tcp://10.0.0.7:5555, not %s", pool->endpoint);
    else if (failed != 0)
        set_error(error, "connect_failed", true, "no pool at %s (%s); start one with `vllmport serve`, or name another with VLLMPORT_ENDPOINT", pool->endpoint, strerror(failed));
    return failed == 0;
}

static void open_socket(vp_pool *pool)
{
    const int endings = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                        ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    int never = -1, linger = LINGER_MS, unlimited = 0, yes = 1;
    int64_t size = MAX_FRAME;
    char address[64];
    pool->socket = zmq_socket(pool->context, ZMQ_DEALER);
    zmq_setsockopt(pool->socket, ZMQ_RECONNECT_IVL, &never, sizeof never);
    zmq_setsockopt(pool->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(pool->socket, ZMQ_RCVHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(pool->socket, ZMQ_MAXMSGSIZE, &size, sizeof size);
    zmq_setsockopt(pool->socket, ZMQ_IPV6, &yes, sizeof yes);
    if (pool->over_tcp) {
        zmq_setsockopt(pool->socket, ZMQ_CURVE_SERVERKEY, pool->keys.server, KEY_SIZE);
        zmq_setsockopt(pool->socket, ZMQ_CURVE_PUBLICKEY, pool->keys.public, KEY_SIZE);
        zmq_setsockopt(pool->socket, ZMQ_CURVE_SECRETKEY, pool->keys.secret, KEY_SIZE);
    }
    pool->connection++;
    pool->last_id = 0;
    pool->welcomed = false;
    snprintf(address, sizeof address, "inproc://monitor-%llu", (unsigned long long)pool->connection);
    zmq_socket_monitor(pool->socket, address, endings);
    pool->monitor = zmq_socket(pool->context, ZMQ_PAIR);
    zmq_connect(pool->monitor, address);
    zmq_connect(pool->socket, pool->endpoint);
}

static bool greet(vp_pool *pool, vp_error *error)
{
    msgpack_sbuffer hello;
    double end = now() + GREETING_MS / 1000.0;
    if (!probe(pool, error))
        return false;
    open_socket(pool);
    msgpack_sbuffer_init(&hello);
    vp_pack(&hello, "[i [i] s i s]", (long)HELLO, (long)PROTOCOL_VERSION, PRODUCT, (long)getpid(), "c");
    send_frames(pool, &hello, NULL);
    msgpack_sbuffer_destroy(&hello);
    while (pool->socket != NULL && !pool->welcomed && now() < end)
        pump(pool, end);
    if (pool->welcomed && pool->socket != NULL)
        return true;
    if (pool->socket == NULL) {
        *error = pool->refused;
    } else {
        set_error(error, "connect_failed", true, "nobody answered at %s", pool->endpoint);
        disconnect(pool, error);
    }
    return false;
}

/* Have a connection: try again, for a while, where nobody answers. */
static bool reconnect(vp_pool *pool, double timeout, vp_error *error)
{
    double end = now() + fmin(timeout, PATIENCE_MS / 1000.0);
    long pause = 20;
    while (pool->socket == NULL && !greet(pool, error)) {
        if (strcmp(error->code, "connect_failed") != 0 || now() > end)
            return false;
        usleep((unsigned)(pause * 1000));
        pause = pause < 250 ? 2 * pause : 500;
    }
    return true;
}

/* Keys. What is said of them never quotes a file. */

static bool is_key(const char *text, size_t size)
{
    return size == KEY_SIZE - 1 && strspn(text, Z85) >= size;
}

/* Copy the value of NAME = "VALUE" out of the text of a pair. */
static bool find_key(char *key, const char *text, const char *name)
{
    const char *line = text;
    while (line != NULL && strncmp(line, name, strlen(name)) != 0) {
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
    line = line == NULL ? NULL : strchr(line, '"');
    if (line == NULL || !is_key(line + 1, strcspn(line + 1, "\"\n")))
        return false;
    memcpy(key, line + 1, KEY_SIZE - 1);
    return true;
}

static bool read_pair(key_ring *keys, const char *path, vp_error *error)
{
    struct stat info;
    char text[1024] = "";
    FILE *file = fopen(path, "re");
    bool is_private, found;
    if (file == NULL || fstat(fileno(file), &info) != 0) {
        set_error(error, "invalid_request", false, "cannot read the key %s: %s; `vllmport keygen FILE` makes one", path, strerror(errno));
        if (file != NULL)
            fclose(file);
        return false;
    }
    is_private = (info.st_mode & 077) == 0;
    found = is_private && fread(text, 1, sizeof text - 1, file) > 0 &&
            find_key(keys->public, text, "public_key") && find_key(keys->secret, text, "secret_key");
    fclose(file);
    explicit_bzero(text, sizeof text);
    if (!is_private)
        set_error(error, "invalid_request", false, "others may read the key %s; run `chmod 600 %s`, or make a new one", path, path);
    else if (!found)
        set_error(error, "invalid_request", false, "%s is no key pair; `vllmport keygen FILE` makes one", path);
    return found;
}

static bool take_keys(vp_pool *pool, const vp_keys *keys, vp_error *error)
{
    const char *server = keys != NULL && keys->server_key != NULL ? keys->server_key : getenv("VLLMPORT_SERVER_KEY");
    const char *path = keys != NULL && keys->key != NULL ? keys->key : getenv("VLLMPORT_KEY");
    if (server == NULL || *server == '\0' || path == NULL || *path == '\0') {
        set_error(error, "invalid_request", false, "%s takes keys: the pool's public key as server_key or VLLMPORT_SERVER_KEY, and the file of your own pair as key or VLLMPORT_KEY; `vllmport keygen FILE` makes one", pool->endpoint);
        return false;
    }
    if (!is_key(server, strlen(server))) {
        set_error(error, "invalid_request", false, "server_key is the 40 characters that `vllmport keygen` printed for the pool");
        return false;
    }
    memcpy(pool->keys.server, server, KEY_SIZE);
    return read_pair(&pool->keys, path, error);
}

vp_pool *vp_connect(const char *endpoint, vp_error *error)
{
    return vp_connect_with(endpoint, NULL, error);
}

vp_pool *vp_connect_with(const char *endpoint, const vp_keys *keys, vp_error *error)
{
    vp_pool *pool = calloc(1, sizeof *pool);
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (endpoint == NULL || *endpoint == '\0')
        endpoint = getenv("VLLMPORT_ENDPOINT");
    if (endpoint != NULL && *endpoint != '\0')
        pool->endpoint = strdup(endpoint);
    else if (runtime != NULL && *runtime != '\0') {
        if (asprintf(&pool->endpoint, "ipc://%s/vllmport/pool.sock", runtime) < 0)
            abort();
    } else if (asprintf(&pool->endpoint, "ipc:///tmp/vllmport-%u/pool.sock", getuid()) < 0)
        abort();
    pool->over_tcp = strncmp(pool->endpoint, "tcp://", 6) == 0;
    pool->context = zmq_ctx_new();
    if ((!pool->over_tcp || take_keys(pool, keys, error)) && greet(pool, error))
        return pool;
    vp_close(pool);
    return NULL;
}

void vp_close(vp_pool *pool)
{
    msgpack_sbuffer bye;
    msgpack_sbuffer_init(&bye);
    vp_pack(&bye, "[i s]", (long)BYE, "closed");
    send_frames(pool, &bye, NULL);
    msgpack_sbuffer_destroy(&bye);
    lose(pool, "this client was closed");
    zmq_ctx_term(pool->context);
    while (pool->leases != NULL) {
        lease *old = pool->leases;
        pool->leases = old->next;
        msgpack_sbuffer_destroy(&old->args);
        free(old->name);
        free(old);
    }
    free(pool->endpoint);
    explicit_bzero(&pool->keys, sizeof pool->keys);
    free(pool);
}

const char *vp_epoch(const vp_pool *pool)
{
    return pool->epoch;
}

/* Calls. */

static vp_call *send_call(vp_pool *pool, const vp_request *request, double timeout)
{
    vp_call *call = calloc(1, sizeof *call);
    msgpack_sbuffer header, nothing;
    const char *id = request->request_id != NULL ? request->request_id : "";
    const char *model = request->model != NULL ? request->model : "";
    const char *retry = request->resume ? "resume" : "";
    const char *session = request->session != NULL ? request->session : "";
    double budget = ceil(fmin(fmax(timeout * 1000, 0), MAX_TIMEOUT_MS));
    const char *format = isinf(timeout) ? "[i i s s n i i s i i s s]" : "[i i s s i i i s i i s s]";
    call->pool = pool;
    call->id = ++pool->last_id;
    call->connection = pool->connection;
    call->stream = request->stream;
    call->give_up = isinf(timeout) ? INFINITY : now() + (budget + GRACE_MS) / 1000;
    call->next = pool->calls;
    pool->calls = call;
    msgpack_sbuffer_init(&header);
    msgpack_sbuffer_init(&nothing);
    vp_pack(&nothing, "{}");
    if (isinf(timeout))
        vp_pack(&header, format, (long)CALL, (long)call->id, model, request->verb,
                (long)(request->stream ? WINDOW : 0), request->priority, id, 0L, 0L, retry,
                session);
    else
        vp_pack(&header, format, (long)CALL, (long)call->id, model, request->verb, (long)budget,
                (long)(request->stream ? WINDOW : 0), request->priority, id, 0L, 0L, retry,
                session);
    send_frames(pool, &header, request->args != NULL ? request->args : &nothing);
    msgpack_sbuffer_destroy(&header);
    msgpack_sbuffer_destroy(&nothing);
    return call;
}

static bool finish(vp_call *call, vp_error *error)
{
    bool done;
    if (call == NULL)
        return false;
    done = vp_next(call, NULL, error) == VP_DONE;
    vp_end(call);
    return done;
}

/* Hold a model on the connection of now: leases end with their connection. */
static bool take_lease(vp_pool *pool, lease *held, vp_error *error)
{
    vp_request load = {.verb = "load", .args = &held->args, .timeout = held->timeout};
    if (held->connection == pool->connection)
        return true;
    if (!finish(vp_start(pool, &load, error), error))
        return false;
    held->connection = pool->connection;
    return true;
}

bool vp_load(vp_pool *pool, const msgpack_sbuffer *args, double timeout, vp_error *error)
{
    batch *value = read_value(args->data, args->size);
    int size = 0;
    const char *name = "tiny";
    lease *held = calloc(1, sizeof *held);
    if (value != NULL) {
        name = vp_text(&value->unpacked.data, "name", &size);
        if (size == 0)
            name = vp_text(&value->unpacked.data, "model", &size);
    }
    held->name = strndup(size == 0 ? "tiny" : name, size == 0 ? 4 : (size_t)size);
    held->timeout = timeout > 0 ? timeout : INFINITY;
    msgpack_sbuffer_init(&held->args);
    msgpack_sbuffer_write(&held->args, args->data, args->size);
    release(value);
    if (take_lease(pool, held, error)) {
        held->next = pool->leases;
        pool->leases = held;
        return true;
    }
    msgpack_sbuffer_destroy(&held->args);
    free(held->name);
    free(held);
    return false;
}

vp_call *vp_start(vp_pool *pool, const vp_request *request, vp_error *error)
{
    double timeout = request->timeout > 0 ? request->timeout : 600;
    double end = now() + timeout;
    while (pool->socket != NULL && pump(pool, 0)) {
        /* what has happened since the last call */
    }
    if (!reconnect(pool, timeout, error))
        return NULL;
    for (lease *held = pool->leases; held != NULL && request->model != NULL; held = held->next)
        if (strcmp(held->name, request->model) == 0 && !take_lease(pool, held, error))
            return NULL;
    return send_call(pool, request, isinf(timeout) ? timeout : end - now());
}

vp_event vp_next(vp_call *call, const msgpack_object **value, vp_error *error)
{
    vp_pool *pool = call->pool;
    while (call->first == NULL && !call->ended) {
        if (now() > call->give_up) {
            vp_error late;
            set_error(&late, "deadline_exceeded", false, "the deadline passed and the pool said nothing");
            push(call, VP_FAILED, NULL, NULL, &late);
        } else {
            pump(pool, call->give_up);
        }
    }
    if (call->first != NULL) {
        free_event(call->current);
        call->current = call->first;
        call->first = call->current->next;
        if (call->first == NULL)
            call->last = NULL;
        if (call->current->kind == VP_ITEM && ++call->read >= WINDOW / 2 && !call->ended) {
            send_numbers(pool, "[i i i]", CREDIT, (long)call->id, call->read);
            call->read = 0; /* half of the window is read: the sender may go on */
        }
    }
    if (value != NULL)
        *value = call->current->value;
    if (error != NULL)
        *error = call->current->error;
    return call->current->kind;
}

void vp_end(vp_call *call)
{
    vp_call **place = &call->pool->calls;
    if (!call->ended && call->connection == call->pool->connection)
        send_numbers(call->pool, "[i i]", CANCEL, (long)call->id, 0);
    while (*place != call)
        place = &(*place)->next;
    *place = call->next;
    free_event(call->current);
    while (call->first != NULL) {
        event *next = call->first->next;
        free_event(call->first);
        call->first = next;
    }
    free(call);
}
