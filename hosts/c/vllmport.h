/* A client of a vllmport pool: calls go over ZeroMQ, values are msgpack.
 *
 * A pool handle is for one thread at a time; any number of calls may be open on it. Values are
 * msgpack-c's objects; the extension types of the protocol arrive as msgpack-c hands them out, with
 * their code and body. Text in a msgpack_object is not terminated: use its size. */
#ifndef VLLMPORT_H
#define VLLMPORT_H

#include <msgpack.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vp_pool vp_pool;
typedef struct vp_call vp_call;

/* Why something failed. `code` is one of bridge/PROTOCOL.md: "deadline_exceeded", "worker_lost", … */
typedef struct vp_error {
    char code[64];
    char message[1024];
    char phase[64];
    char worker[256];
    bool retryable;
    int attempt;
    long tokens;    /* how many there were, where a call was given up or ran out of time */
    char exit[128]; /* how the worker ended, where one did */
} vp_error;

/* What to call. Absent fields may be zero. */
typedef struct vp_request {
    const char *model;           /* name of a model; NULL or "" for the pool itself */
    const char *verb;            /* "generate", "chat", "tokenize", … */
    const msgpack_sbuffer *args; /* a packed map, see vp_pack; NULL for an empty one */
    double timeout;              /* seconds for the whole call; 0 for 600; INFINITY for no limit */
    bool stream;                 /* whether items come before the result */
    long priority;               /* lower runs first */
    const char *request_id;      /* the caller's own name for the call */
    bool resume;                 /* run it again, within its time, if its worker is lost */
    const char *session;         /* of a universal call ("ffi.call", …); NULL for the pool handle's own */
} vp_request;

typedef enum vp_event {
    VP_ITEM,  /* the next delta of a stream */
    VP_DONE,  /* the result, or the summary of a stream; the call has ended */
    VP_FAILED /* the call has ended with an error */
} vp_event;

/* What a pool that listens on TCP takes, see `vllmport keygen`. NULL for what VLLMPORT_SERVER_KEY
 * and VLLMPORT_KEY say. */
typedef struct vp_keys {
    const char *server_key; /* the pool's public key, 40 characters */
    const char *key;        /* path of the client's own pair */
} vp_keys;

/* Join the pool at ipc://PATH or tcp://HOST:PORT; NULL for VLLMPORT_ENDPOINT, else the user's runtime
 * folder. Returns NULL with the error filled in: connect_failed, protocol_error, invalid_request,
 * permission_denied where a pool on TCP does not know the key. */
vp_pool *vp_connect(const char *endpoint, vp_error *error);

/* The same with keys that the environment does not name; `keys` may be NULL. */
vp_pool *vp_connect_with(const char *endpoint, const vp_keys *keys, vp_error *error);

/* Leave. Calls that are still open must have been ended with vp_end before. */
void vp_close(vp_pool *pool);

/* The run of the supervisor that was reached last; another text after it was restarted. */
const char *vp_epoch(const vp_pool *pool);

/* Load a model, or join an equal one, and wait until it is ready. `args` is a packed map as in
 * section 9 of bridge/PROTOCOL.md; its `name` is what calls name. The pool keeps the specification
 * and loads it again after the supervisor was restarted. `timeout` is in seconds; 0 for as long as the
 * load gets on, which the pool sees to. Returns whether it is ready. */
bool vp_load(vp_pool *pool, const msgpack_sbuffer *args, double timeout, vp_error *error);

/* Make a call. Connects again if the connection was lost, for up to ten seconds. Returns NULL with
 * the error filled in. End each call with vp_end. */
vp_call *vp_start(vp_pool *pool, const vp_request *request, vp_error *error);

/* Wait for the next event of a call. `value` (may be NULL) is set to the item or result; it lives
 * until the next vp_next or vp_end of this call. After VP_DONE or VP_FAILED the same comes again. */
vp_event vp_next(vp_call *call, const msgpack_object **value, vp_error *error);

/* Free a call; if it is still open it is cancelled. */
void vp_end(vp_call *call);

/* Pack a value: {} map, [] array, s text (char *), i integer (long), f float (double), b boolean
 * (int), n nil, o an object (const msgpack_object *), such as a ref that a universal call gave; spaces, commas and colons are for people:
 *     vp_pack(&args, "{s: s, s: {s: i}}", "prompt", "Hi", "sampling_params", "max_tokens", 8L);
 * The buffer is cleared first. Returns whether the format could be read. */
bool vp_pack(msgpack_sbuffer *buffer, const char *format, ...);

/* Look into a value: "outputs.0.text". NULL where there is nothing. */
const msgpack_object *vp_at(const msgpack_object *value, const char *path);

/* The same for text, not terminated: its length goes to `size`. "" where there is none. */
const char *vp_text(const msgpack_object *value, const char *path, int *size);

/* The same for an integer; 0 where there is none. */
long vp_integer(const msgpack_object *value, const char *path);

#ifdef __cplusplus
}
#endif
#endif
