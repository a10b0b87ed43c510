/* Print an answer as it comes. With a running pool: vllmport serve --model tiny */
#include <stdio.h>
#include <vllmport.h>

int main(int argc, char **argv)
{
    vp_error error;
    vp_event event = VP_FAILED;
    const msgpack_object *delta;
    msgpack_sbuffer args;
    vp_pool *pool = vp_connect(NULL, &error);
    if (pool == NULL)
        return fprintf(stderr, "%s: %s\n", error.code, error.message), 1;
    msgpack_sbuffer_init(&args);
    vp_pack(&args, "{s: s, s: {s: i, s: f}}", "prompt", argc > 1 ? argv[1] : "The capital of France is",
            "sampling_params", "max_tokens", 24L, "temperature", 0.0);
    vp_request request = {.model = "tiny", .verb = "generate", .args = &args, .stream = true, .timeout = 30};
    vp_call *call = vp_start(pool, &request, &error);
    while (call != NULL && (event = vp_next(call, &delta, &error)) == VP_ITEM) {
        int size;
        const char *text = vp_text(delta, "outputs.0.text", &size);
        printf("%.*s", size, text);
        fflush(stdout);
    }
    if (event == VP_FAILED)
        fprintf(stderr, "%s: %s\n", error.code, error.message);
    if (call != NULL)
        vp_end(call);
    msgpack_sbuffer_destroy(&args);
    vp_close(pool);
    return event == VP_DONE ? 0 : 1;
}
