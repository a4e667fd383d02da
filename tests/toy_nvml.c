/* A small libnvidia-ml.so.1 for machines without a GPU: what nvidia-ml-py needs to list and sample GPUs, with
 * readings from the text file that TOY_NVML names, read again at each call. Lines: "driver 0" (none answers),
 * "gpus N", "lost 1" (every GPU fell off the bus), "throttle BITS", "used_mib N", "process PID MIB".
 * What it lacks is a function that is not found, as on an old driver. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
#define MIB (1ull << 20)
#define TOTAL_MIB 81920ull
#define MOST 16

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

static long long told(const char *key, long long otherwise, process *found, unsigned *count) {
    FILE *file = fopen(getenv("TOY_NVML"), "r");
    char name[32];
    long long value, second, answer = otherwise;
    while (file && fscanf(file, "%31s %lli", name, &value) == 2) {
        if (!strcmp(name, "process") && fscanf(file, "%lli", &second) == 1 && found && *count < MOST)
            found[(*count)++] = (process){.pid = value, .used = second * MIB};
        if (!strcmp(name, key)) answer = value;
    }
    if (file) fclose(file);
    return answer;
}

static long long fact(const char *key, long long otherwise) { return told(key, otherwise, NULL, NULL); }
static int state(void) { return fact("lost", 0) ? GPU_IS_LOST : OK; }

int nvmlInitWithFlags(unsigned flags) { return fact("driver", 1) ? OK : DRIVER_NOT_LOADED; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    return code == GPU_IS_LOST ? "GPU is lost" : code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Toy error";
}
int nvmlDeviceGetCount_v2(unsigned *count) { *count = fact("gpus", 1); return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(size_t)(index + 1);
    return index < fact("gpus", 1) ? state() : NOT_FOUND;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    unsigned index;
    if (sscanf(uuid, "GPU-toy-%u", &index) != 1) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(index, handle);
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-toy-%zu", (size_t)handle - 1);
    return state();
}
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    snprintf(name, length, "Toy");
    return state();
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *memory) {
    unsigned long long used = fact("used_mib", 0);
    *memory = (memory_v1){TOTAL_MIB * MIB, (TOTAL_MIB - used) * MIB, used * MIB};
    return state();
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
    unsigned long long used = fact("used_mib", 0);
    memory->total = TOTAL_MIB * MIB, memory->reserved = 0;
    memory->free = (TOTAL_MIB - used) * MIB, memory->used = used * MIB;
    return state();
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *mw) { *mw = 100000; return state(); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *bits) {
    *bits = fact("throttle", 0);
    return state();
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *processes) {
    process found[MOST];
    unsigned here = 0;
    told("", 0, found, &here);
    int enough = *count >= here;
    if (enough && here) memcpy(processes, found, here * sizeof *found);
    *count = here;
    return state() ? state() : enough ? OK : INSUFFICIENT_SIZE;
}
