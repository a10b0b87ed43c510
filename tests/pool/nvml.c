/* Stands in for NVIDIA's library where there is no GPU: two devices, and the moods of a bad driver.
 *
 * FAKE_NVML=init|count|memory makes that call fail; hang makes reading the memory never return;
 * old knows no version 2 of the memory; mute does not name processes, and shy names them only.
 * FAKE_NVML_USER names a file: "PID BYTES" that are then used on each device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, FUNCTION_NOT_FOUND = 13, LOST = 15 };

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } process;

static int mood(const char *name) {
    const char *now = getenv("FAKE_NVML");
    return now && !strcmp(now, name);
}

const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "a driver's word"; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return mood("init") ? 9 : SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return mood("count") ? LOST : SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(unsigned long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    strncpy(text, handle == (void *)1 ? "GPU-one" : "GPU-two", size);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
    if (mood("hang")) for (;;) pause();
    if (mood("memory")) return LOST;
    if (mood("old")) return NOT_SUPPORTED;
    memory->total = 1000;
    memory->reserved = 100;
    memory->used = handle == (void *)1 ? 0 : 300;
    memory->free = 900 - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *list) {
    process found = {.pid = 4242, .used = 300};
    const char *path = getenv("FAKE_NVML_USER");
    FILE *user = path ? fopen(path, "r") : NULL;
    if (user) {
        if (fscanf(user, "%u %llu", &found.pid, &found.used) != 2) abort();
        fclose(user);
    }
    if (mood("mute")) return NO_PERMISSION;
    if (handle == (void *)1 && !user) {
        *count = 0;
        return SUCCESS;
    }
    if (*count < 1) {
        *count = 1;
        return 7; /* too small a list */
    }
    *count = 1;
    list[0] = found;
    if (mood("shy")) list[0].used = -1ULL; /* NVML_VALUE_NOT_AVAILABLE */
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process *list) {
    return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, list);
}
