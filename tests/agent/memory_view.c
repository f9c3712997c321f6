/* How much memory a worker sees and gets, in C: asks and allocates as the limiters' libraries do in its process.

   memory_view tfshm FILE INDEX      TensorFusion's limiter: cuMemGetInfo and nvmlDeviceGetMemoryInfo tell the limit, and
                                     what the node says is in use; an allocation past the limit is denied
   memory_view hamicore FILE INDEX   HAMi-core: the same, but processes count themselves what they allocate

   Reads a line each: `info` answers TOTAL FREE in bytes, `alloc BYTES` granted or denied, `free BYTES` freed. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "hamicore.h"
#include "tfshm.h"

static const uint64_t DEVICE_BYTES = 24ull << 30;
static int at;

static void *map(const char *path, size_t size) {
    int file = open(path, O_RDWR);
    if (file < 0) { perror(path); exit(1); }
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) { perror("mmap"); exit(1); }
    return memory;
}

static uint64_t load(const uint64_t *place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }

static struct state *limiter;

static uint64_t limiter_total(void) { return load(&limiter->v2.devices[at].info.mem_limit); }
static uint64_t limiter_used(void) { return load(&limiter->v2.devices[at].info.pod_memory_used); }
/* Only the node counts what the pod holds. */
static void limiter_hold(int64_t bytes) { (void)bytes; }

static region *shared;

static uint64_t core_total(void) { return shared->limit[at] ? load(&shared->limit[at]) : DEVICE_BYTES; }
static uint64_t core_used(void) {
    uint64_t used = 0;
    for (int i = 0; i < shared->proc_num; i++) used += load(&shared->procs[i].used[at].total);
    return used;
}
static void core_hold(int64_t bytes) {
    shared->procs[0].used[at].data += bytes;
    __atomic_fetch_add(&shared->procs[0].used[at].total, bytes, __ATOMIC_RELEASE);
}

int main(int count, char **words) {
    if (count != 4) return 2;
    int is_core = !strcmp(words[1], "hamicore");
    if (is_core) shared = map(words[2], sizeof *shared);
    else limiter = map(words[2], sizeof *limiter);
    at = atoi(words[3]);
    uint64_t (*total)(void) = is_core ? core_total : limiter_total;
    uint64_t (*used)(void) = is_core ? core_used : limiter_used;
    void (*hold)(int64_t) = is_core ? core_hold : limiter_hold;
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        uint64_t bytes = 0;
        if (sscanf(line, "alloc %" SCNu64, &bytes) == 1) {
            int granted = used() + bytes <= total();
            if (granted) hold((int64_t)bytes);
            puts(granted ? "granted" : "denied");
        } else if (sscanf(line, "free %" SCNu64, &bytes) == 1) {
            hold(-(int64_t)bytes);
            puts("freed");
        } else {
            uint64_t all = total(), taken = used();
            printf("%" PRIu64 " %" PRIu64 "\n", all, taken < all ? all - taken : 0);
        }
        fflush(stdout);
    }
    return 0;
}
