/* Calls what runs, then tries to load a model: prints the answer, and the codes of what is refused.
 * With an argument it streams, and prints how that ends. */
#include <math.h>
#include <stdio.h>
#include <vllmport.h>

static int stream(vp_pool *pool, msgpack_sbuffer *args)
{
    vp_error error = {0};
    vp_request request = {.model = "echo", .verb = "generate", .args = args, .timeout = INFINITY, .stream = true};
    vp_pack(args, "{s: s, s: {s: i, s: b}}", "prompt", "abc", "sampling_params", "max_tokens", 1000000L, "ignore_eos", 1);
    vp_call *call = vp_start(pool, &request, &error);
    for (int count = 0; call != NULL && vp_next(call, NULL, &error) == VP_ITEM; count++)
        if (count == 0)
            printf("streams\n"), fflush(stdout);
    return printf("%s %s\n", error.code, error.message) < 0;
}

int main(int argc, char **argv)
{
    vp_error error = {0};
    vp_request request = {.model = "tiny", .verb = "generate", .timeout = 60};
    msgpack_sbuffer args;
    const msgpack_object *answer;
    int size;
    vp_pool *pool = vp_connect(NULL, &error);
    if (pool == NULL)
        return printf("%s %s\n", error.code, error.message) < 0;
    msgpack_sbuffer_init(&args);
    if (argc > 1 && argv[1][0] == 's')
        return stream(pool, &args);
    vp_pack(&args, "{s: s, s: {s: i, s: f}}", "prompt", "The capital of France is", "sampling_params", "max_tokens", 8L,
            "temperature", 0.0);
    request.args = &args;
    vp_call *call = vp_start(pool, &request, &error);
    if (call != NULL && vp_next(call, &answer, &error) == VP_DONE) {
        const char *text = vp_text(answer, "outputs.0.text", &size);
        printf("%.*s\n", size, text);
    }
    if (call != NULL)
        vp_end(call);
    vp_pack(&args, "{s: s, s: s}", "model", "echo", "name", "mine");
    printf("%s %s\n", vp_load(pool, &args, 60, &error) ? "loaded" : error.code, error.message);
    msgpack_sbuffer_destroy(&args);
    vp_close(pool);
    return 0;
}
