/* HAMi-core's shared region, version 1.2, as its header declares it; written from the structures it documents. */
#include <semaphore.h>
#include <stddef.h>
#include <stdint.h>

typedef struct { uint64_t context, module, data, offset, total, unused[3]; } memory;
typedef struct { uint64_t dec, enc, sm, unused[3]; } util;
typedef struct {
    int32_t pid, hostpid;
    memory used[16];
    uint64_t monitorused[16];
    util device_util[16];
    int32_t status;
    uint64_t seqlock, unused[2];
} slot;
typedef struct {
    int32_t initialized_flag;
    uint32_t major_version, minor_version;
    int32_t sm_init_flag;
    size_t owner_pid;
    sem_t sem;
    uint64_t device_num;
    char uuids[16][96];
    uint64_t limit[16], sm_limit[16];
    slot procs[1024];
    int proc_num, utilization_switch, recent_kernel, priority;
    uint64_t last_kernel_time;
    sem_t sem_postinit;
} region;
