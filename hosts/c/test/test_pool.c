/* The client against a real pool: the bundled model on vLLM for answers, the echo engine for faults.
 * VLLMPORT says how to run the command; else it is "vllmport". */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vllmport.h>

#define EXPECT(condition) \
    do { \
        if (!(condition)) \
            fail(__LINE__, #condition); \
    } while (0)

static char folder[64], endpoint[128];
static pid_t service = -1;
static vp_error error;

static void fail(int line, const char *what)
{
    fprintf(stderr, "test_pool.c:%d: %s; last error: %s: %s\n", line, what, error.code, error.message);
    if (service > 0)
        kill(service, SIGTERM);
    _exit(1);
}

static void start_service(void)
{
    char command[1024];
    const char *vllmport = getenv("VLLMPORT");
    snprintf(command, sizeof command, "exec %s serve --endpoint %s --model echo %s/pool.toml 2>>%s/log",
             vllmport != NULL ? vllmport : "vllmport", endpoint, folder, folder);
    service = fork();
    if (service == 0) {
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
}

static void stop_service(int signum)
{
    kill(service, signum);
    waitpid(service, NULL, 0);
    service = -1;
}

static vp_pool *join(void)
{
    for (int tries = 0; tries < 300; tries++) {
        vp_pool *pool = vp_connect(endpoint, &error);
        if (pool != NULL)
            return pool;
        EXPECT(strcmp(error.code, "connect_failed") == 0 && error.retryable);
        usleep(100000);
    }
    fail(__LINE__, "nobody serves");
    return NULL;
}

static vp_call *call(vp_pool *pool, const char *model, const char *verb, const msgpack_sbuffer *args,
                     double timeout, bool stream)
{
    vp_request request = {.model = model, .verb = verb, .args = args, .timeout = timeout, .stream = stream};
    vp_call *made = vp_start(pool, &request, &error);
    EXPECT(made != NULL);
    return made;
}

/* Whether the texts of all outputs in the rest of a call make up `expected`. */
static bool says(vp_call *answered, const char *expected)
{
    char said[4096] = "";
    const msgpack_object *value;
    vp_event event;
    do {
        int size;
        const char *text;
        event = vp_next(answered, &value, &error);
        text = vp_text(value, "outputs.0.text", &size);
        strncat(said, text, (size_t)size);
    } while (event == VP_ITEM);
    vp_end(answered);
    return event == VP_DONE && strcmp(said, expected) == 0;
}

static void load(vp_pool *pool, const char *model, const char *name, const char *argument, double value)
{
    msgpack_sbuffer args;
    msgpack_sbuffer_init(&args);
    EXPECT(vp_pack(&args, "{s: s, s: s, s: {s: f}}", "model", model, "name", name, "engine_args", argument, value));
    EXPECT(vp_load(pool, &args, 120, &error));
    msgpack_sbuffer_destroy(&args);
}

static void prompt(msgpack_sbuffer *args, const char *text, long tokens)
{
    EXPECT(vp_pack(args, "{s: s, s: {s: i, s: f, s: b}}", "prompt", text, "sampling_params", "max_tokens",
                   tokens, "temperature", 0.0, "ignore_eos", tokens > 100));
}

static long worker_pid(vp_pool *pool, const char *model)
{
    vp_call *status = call(pool, "", "status", NULL, 10, false);
    const msgpack_object *value;
    long pid = 0;
    EXPECT(vp_next(status, &value, &error) == VP_DONE);
    value = vp_at(value, "workers");
    for (uint32_t i = 0; i < value->via.array.size; i++) {
        int size;
        const char *name = vp_text(&value->via.array.ptr[i], "model", &size);
        if ((size_t)size == strlen(model) && memcmp(name, model, (size_t)size) == 0)
            pid = vp_integer(&value->via.array.ptr[i], "pid");
    }
    vp_end(status);
    return pid;
}

static long unfinished(vp_pool *pool)
{
    vp_call *status = call(pool, "", "status", NULL, 10, false);
    const msgpack_object *value;
    long sum = 0;
    EXPECT(vp_next(status, &value, &error) == VP_DONE);
    value = vp_at(value, "workers");
    for (uint32_t i = 0; i < value->via.array.size; i++)
        sum += vp_integer(&value->via.array.ptr[i], "unfinished");
    vp_end(status);
    return sum;
}

static void until_unfinished(vp_pool *pool, long wanted)
{
    for (int tries = 0; tries < 200; tries++) {
        if (unfinished(pool) == wanted)
            return;
        usleep(50000);
    }
    fail(__LINE__, "requests stay in the engine");
}

static void the_model_answers(vp_pool *pool)
{
    msgpack_sbuffer args;
    msgpack_sbuffer_init(&args);
    load(pool, "tiny", "taught", "gpu_memory_utilization", 0.5);
    prompt(&args, "The capital of France is", 8);
    EXPECT(says(call(pool, "taught", "generate", &args, 30, false), " Paris."));
    EXPECT(says(call(pool, "taught", "generate", &args, 30, true), " Paris."));
    prompt(&args, "x", 0);
    vp_call *refused = call(pool, "taught", "generate", &args, 30, false);
    EXPECT(vp_next(refused, NULL, &error) == VP_FAILED && strcmp(error.code, "invalid_request") == 0);
    vp_end(refused);
    msgpack_sbuffer_destroy(&args);
}

static void a_deadline_ends_a_call(vp_pool *pool, const msgpack_sbuffer *endless)
{
    vp_call *late = call(pool, "slow", "generate", endless, 0.2, false);
    EXPECT(vp_next(late, NULL, &error) == VP_FAILED);
    EXPECT(strcmp(error.code, "deadline_exceeded") == 0 && strcmp(error.phase, "decode") == 0 && error.tokens > 0);
    EXPECT(vp_next(late, NULL, &error) == VP_FAILED); /* it stays ended */
    vp_end(late);
    until_unfinished(pool, 0);
}

static void a_cancel_takes_a_stream_out(vp_pool *pool, const msgpack_sbuffer *endless)
{
    vp_call *stream = call(pool, "slow", "generate", endless, INFINITY, true);
    for (int i = 0; i < 300; i++) /* more than one window: credit is granted */
        EXPECT(vp_next(stream, NULL, &error) == VP_ITEM);
    vp_end(stream);
    until_unfinished(pool, 0);
}

static void several_calls_may_be_open(vp_pool *pool)
{
    msgpack_sbuffer args;
    vp_call *calls[32];
    msgpack_sbuffer_init(&args);
    prompt(&args, "abc", 3);
    for (int i = 0; i < 32; i++)
        calls[i] = call(pool, "slow", "generate", &args, 30, i % 2);
    for (int i = 31; i >= 0; i--)
        EXPECT(says(calls[i], "abc"));
    msgpack_sbuffer_destroy(&args);
}

static void a_killed_worker_ends_its_stream(vp_pool *pool, const msgpack_sbuffer *endless)
{
    vp_call *stream = call(pool, "slow", "generate", endless, 30, true);
    msgpack_sbuffer args;
    vp_event event;
    EXPECT(vp_next(stream, NULL, &error) == VP_ITEM);
    kill((pid_t)worker_pid(pool, "slow"), SIGKILL);
    while ((event = vp_next(stream, NULL, &error)) == VP_ITEM) {
    }
    EXPECT(event == VP_FAILED && strcmp(error.code, "worker_lost") == 0 && error.retryable);
    EXPECT(strcmp(error.exit, "was killed by SIGKILL") == 0);
    vp_end(stream);
    msgpack_sbuffer_init(&args);
    prompt(&args, "again", 5);
    EXPECT(says(call(pool, "slow", "generate", &args, 30, false), "again"));
    msgpack_sbuffer_destroy(&args);
}

static void a_restarted_supervisor_is_reached_again(vp_pool *pool, const msgpack_sbuffer *endless)
{
    vp_call *open = call(pool, "slow", "generate", endless, 30, true);
    msgpack_sbuffer args;
    char epoch[64];
    vp_event event;
    snprintf(epoch, sizeof epoch, "%s", vp_epoch(pool));
    EXPECT(vp_next(open, NULL, &error) == VP_ITEM);
    stop_service(SIGKILL);
    while ((event = vp_next(open, NULL, &error)) == VP_ITEM) {
    }
    EXPECT(event == VP_FAILED && strcmp(error.code, "pool_lost") == 0 && error.retryable);
    vp_end(open);
    start_service();
    msgpack_sbuffer_init(&args);
    prompt(&args, "again", 5);
    EXPECT(says(call(pool, "slow", "generate", &args, 30, false), "again")); /* loaded again by the handle */
    EXPECT(strcmp(epoch, vp_epoch(pool)) != 0);
    msgpack_sbuffer_destroy(&args);
}

static void a_killed_client_leaves_nothing(vp_pool *pool, const msgpack_sbuffer *endless)
{
    pid_t client = fork();
    if (client == 0) {
        vp_pool *own = vp_connect(endpoint, &error);
        vp_call *stream = call(own, "echo", "generate", endless, INFINITY, true);
        for (;;)
            vp_next(stream, NULL, &error);
    }
    until_unfinished(pool, 1);
    kill(client, SIGKILL);
    waitpid(client, NULL, 0);
    until_unfinished(pool, 0);
}

/* Make a universal call that has one result; it lives until vp_end of what is returned. */
static vp_call *universal(vp_pool *pool, const char *verb, const msgpack_sbuffer *args, const msgpack_object **value)
{
    vp_call *made = call(pool, "slow", verb, args, 30, false);
    *value = NULL;
    if (vp_next(made, value, &error) != VP_DONE)
        *value = NULL;
    return made;
}

static void a_ref_is_held_called_and_lost(vp_pool *pool)
{
    const msgpack_object *two, *value;
    msgpack_sbuffer args;
    vp_call *making, *made, *stream;
    msgpack_sbuffer_init(&args);

    EXPECT(vp_pack(&args, "{s: s, s: s, s: [s]}", "module", "decimal", "name", "Decimal", "args", "2.25"));
    making = universal(pool, "ffi.call", &args, &two);
    EXPECT(two != NULL && two->type == MSGPACK_OBJECT_EXT && two->via.ext.type == 13);
    EXPECT(vp_pack(&args, "{s: o, s: s}", "ref", two, "name", "is_signed"));
    made = universal(pool, "ffi.method", &args, &value);
    EXPECT(value != NULL && value->type == MSGPACK_OBJECT_BOOLEAN && !value->via.boolean);
    vp_end(made);
    EXPECT(vp_pack(&args, "{s: o, s: s}", "ref", two, "name", "__class__"));
    made = universal(pool, "ffi.attr", &args, &value);
    EXPECT(value == NULL && strcmp(error.code, "not_allowed") == 0);
    vp_end(made);

    EXPECT(vp_pack(&args, "{s: s, s: s, s: [i]}", "module", "itertools", "name", "count", "args", 5L));
    stream = call(pool, "slow", "ffi.call", &args, 30, true);
    for (long number = 5; number < 700; number++)
        EXPECT(vp_next(stream, &value, &error) == VP_ITEM && (long)value->via.u64 == number);
    vp_end(stream);

    kill((pid_t)worker_pid(pool, "slow"), SIGKILL);
    EXPECT(vp_pack(&args, "{s: o, s: s}", "ref", two, "name", "is_signed"));
    do {
        made = universal(pool, "ffi.method", &args, &value);
        vp_end(made);
    } while (value != NULL);
    EXPECT(strcmp(error.code, "session_lost") == 0 && strstr(error.exit, "SIGKILL") != NULL);
    EXPECT(vp_pack(&args, "{s: [o]}", "refs", two));
    vp_end(universal(pool, "ffi.release", &args, &value));
    vp_end(universal(pool, "ffi.end", NULL, &value));
    vp_end(making);
    msgpack_sbuffer_destroy(&args);
}

static void what_cannot_be_reached_is_said(void)
{
    EXPECT(vp_connect("ipc:///tmp/nobody-is-here.sock", &error) == NULL);
    EXPECT(strcmp(error.code, "connect_failed") == 0);
    EXPECT(vp_connect("tcp://somewhere", &error) == NULL);
    EXPECT(strcmp(error.code, "invalid_request") == 0);
}

static void write_file(const char *path, const char *text, unsigned mode)
{
    FILE *file = fopen(path, "w");
    EXPECT(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0 && chmod(path, mode) == 0);
}

static void a_pool_on_tcp_is_not_asked_without_proper_keys(void)
{
    const char *nobody = "tcp://127.0.0.1:9", *good = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
    char path[128], pair[256];
    vp_keys keys = {.server_key = "short", .key = path};
    snprintf(path, sizeof path, "%s/own.key", folder);
    snprintf(pair, sizeof pair, "public_key = \"%s\"\nsecret_key = \"%s\"\n", good, good);
    EXPECT(vp_connect(nobody, &error) == NULL && strcmp(error.code, "invalid_request") == 0);
    EXPECT(vp_connect_with(nobody, &keys, &error) == NULL && strstr(error.message, "40 characters") != NULL);
    keys.server_key = good;
    EXPECT(vp_connect_with(nobody, &keys, &error) == NULL && strstr(error.message, "cannot read") != NULL);
    write_file(path, "public_key = \"secret\"\n", 0600);
    EXPECT(vp_connect_with(nobody, &keys, &error) == NULL && strstr(error.message, "no key pair") != NULL);
    write_file(path, pair, 0644);
    EXPECT(vp_connect_with(nobody, &keys, &error) == NULL && strstr(error.message, "chmod 600") != NULL);
    write_file(path, pair, 0600);
    EXPECT(vp_connect_with(nobody, &keys, &error) == NULL && strcmp(error.code, "connect_failed") == 0);
    keys.server_key = NULL;
    EXPECT(vp_connect_with("tcp://:", &keys, &error) == NULL && strcmp(error.code, "invalid_request") == 0);
}

int main(void)
{
    vp_pool *pool;
    msgpack_sbuffer endless, bad;
    FILE *config;
    snprintf(folder, sizeof folder, "/tmp/vp-c-XXXXXX");
    EXPECT(mkdtemp(folder) != NULL);
    setenv("XDG_RUNTIME_DIR", folder, 1);
    setenv("XDG_STATE_HOME", folder, 1);
    snprintf(endpoint, sizeof endpoint, "ipc://%s/pool.sock", folder);
    msgpack_sbuffer_init(&endless);
    msgpack_sbuffer_init(&bad);
    prompt(&endless, "abc", 100000000);
    EXPECT(!vp_pack(&bad, "{s: x}", "a") && !vp_pack(&bad, "[i", 1L));

    EXPECT(chdir(folder) == 0 && (config = fopen("pool.toml", "w")) != NULL);
    fputs("[universal]\nmodules = ['decimal', 'itertools']\n", config);
    fclose(config);
    start_service();
    pool = join();
    load(pool, "echo", "slow", "step_delay", 0.001);
    the_model_answers(pool);
    a_deadline_ends_a_call(pool, &endless);
    a_cancel_takes_a_stream_out(pool, &endless);
    several_calls_may_be_open(pool);
    a_killed_worker_ends_its_stream(pool, &endless);
    a_ref_is_held_called_and_lost(pool);
    a_killed_client_leaves_nothing(pool, &endless);
    a_restarted_supervisor_is_reached_again(pool, &endless);
    what_cannot_be_reached_is_said();
    a_pool_on_tcp_is_not_asked_without_proper_keys();

    vp_close(pool);
    stop_service(SIGTERM);
    msgpack_sbuffer_destroy(&endless);
    msgpack_sbuffer_destroy(&bad);
    execlp("rm", "rm", "-rf", folder, (char *)NULL);
    return 1;
}
