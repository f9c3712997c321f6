/* Stand-in for libnvidia-ml.so.1: the functions that the agent calls, with NVML's own structures and habits.
 *
 * All state is one text file named by NVML_STANDIN_STATE, read again whenever it was replaced, one record a line:
 *   driver VERSION
 *   device INDEX TOTAL USED PERCENT UUID NAME...
 *   process INDEX PID BYTES                      (-1: not available)
 *   sample INDEX PID MICROSECONDS PERCENT        (a sample in the driver's buffer)
 *   steady INDEX PID PERIOD_MICROSECONDS PERCENT (one sample at the end of each period of the wall clock)
 *   mean INDEX MICROSECONDS PERCENT              (a sample of the whole device)
 *   client INDEX PID BYTES                       (a client of MPS)
 *   graphics INDEX PID BYTES                     (a process that only draws)
 *   name PID NAME...
 *   silicon INDEX MIG GPM CORES MAJOR            (MIG mode, whether it has GPM, CUDA cores, CUDA capability)
 *   mig INDEX PARENT GI CI SMS SLICES TOTAL USED BUSY CLOCK UUID
 *                                                (an instance, INDEX 32 and up; BUSY of CLOCK microseconds as GPM has it)
 *   error FUNCTION INDEX CODE                    (INDEX -1: all devices, or a call without one)
 *   quirk NAME                                   (zero_rows: an idle device answers SUCCESS with no rows;
 *                                                 whole_buffer: the time asked from is ignored)
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25 };
enum { MAX_DEVICES = 32, MAX_INSTANCES = 32, MAX_ROWS = 8192, MAX_ERRORS = 64, MAX_NAMES = 64, SLOTS = 7 };

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 bytes; unsigned gi, ci; } process_info;
typedef struct { unsigned pid; u64 at; unsigned sm, mem, enc, dec; } process_sample;
typedef struct { u64 at; union { unsigned ui; u64 wide; double real; } value; } device_sample;
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } rates;

typedef struct {
    int known, has_mig, has_gpm, cores, major, parent;
    u64 total, used, busy, clock;
    unsigned percent, gi, ci, sms, slices;
    char uuid[96], name[96];
} device;
typedef struct { unsigned pid; char name[128]; } process_name;
typedef struct { int device; unsigned pid; u64 at, bytes, period; unsigned percent; char kind; } row;
typedef struct { char function[64]; int device, code; } failure;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialized, samples_out;
static struct stat read_stat;
static char read_path[4096], driver[80];
static device devices[MAX_DEVICES + MAX_INSTANCES];
static process_name names[MAX_NAMES];
static row rows[MAX_ROWS];
static failure failures[MAX_ERRORS];
static int row_count, failure_count, device_count, name_count, zero_rows, whole_buffer;

static void parse_line(char *line) {
    row r = {0};
    device d = {.known = 1};
    failure f = {{0}, 0, 0};
    long long bytes;
    char name[64];
    process_name named = {0};
    int index;
    if (sscanf(line, "driver %79s", driver) == 1) return;
    if (sscanf(line, "device %d %llu %llu %u %95s %95[^\n]", &index, &d.total, &d.used, &d.percent, d.uuid, d.name) == 6) {
        if (index < 0 || index >= MAX_DEVICES) return;
        devices[index] = d;
        if (index >= device_count) device_count = index + 1;
    } else if (sscanf(line, "process %d %u %lld", &r.device, &r.pid, &bytes) == 3) {
        r.kind = 'p';
        r.bytes = (u64)bytes;
    } else if (sscanf(line, "sample %d %u %llu %u", &r.device, &r.pid, &r.at, &r.percent) == 4) {
        r.kind = 's';
    } else if (sscanf(line, "steady %d %u %llu %u", &r.device, &r.pid, &r.period, &r.percent) == 4) {
        r.kind = 'c';
    } else if (sscanf(line, "mean %d %llu %u", &r.device, &r.at, &r.percent) == 3) {
        r.kind = 'm';
    } else if (sscanf(line, "client %d %u %lld", &r.device, &r.pid, &bytes) == 3) {
        r.kind = 'M';
        r.bytes = (u64)bytes;
    } else if (sscanf(line, "graphics %d %u %lld", &r.device, &r.pid, &bytes) == 3) {
        r.kind = 'g';
        r.bytes = (u64)bytes;
    } else if (sscanf(line, "name %u %127[^\n]", &named.pid, named.name) == 2) {
        if (name_count < MAX_NAMES) names[name_count++] = named;
    } else if (sscanf(line, "silicon %d %d %d %d %d", &index, &d.has_mig, &d.has_gpm, &d.cores, &d.major) == 5) {
        if (index < 0 || index >= MAX_DEVICES) return;
        devices[index].has_mig = d.has_mig;
        devices[index].has_gpm = d.has_gpm;
        devices[index].cores = d.cores;
        devices[index].major = d.major;
    } else if (sscanf(line, "mig %d %d %u %u %u %u %llu %llu %llu %llu %95s", &index, &d.parent, &d.gi, &d.ci, &d.sms,
                      &d.slices, &d.total, &d.used, &d.busy, &d.clock, d.uuid) == 11) {
        if (index >= MAX_DEVICES && index < MAX_DEVICES + MAX_INSTANCES) devices[index] = d;
    } else if (sscanf(line, "error %63s %d %d", f.function, &f.device, &f.code) == 3) {
        if (failure_count < MAX_ERRORS) failures[failure_count++] = f;
    } else if (sscanf(line, "quirk %63s", name) == 1) {
        zero_rows |= !strcmp(name, "zero_rows");
        whole_buffer |= !strcmp(name, "whole_buffer");
    }
    if (r.kind && row_count < MAX_ROWS) rows[row_count++] = r;
}

static void reload(void) {
    const char *path = getenv("NVML_STANDIN_STATE");
    struct stat now;
    char line[512];
    if (!path || stat(path, &now)) return;
    if (!strcmp(path, read_path) && now.st_ino == read_stat.st_ino && now.st_size == read_stat.st_size &&
        now.st_mtim.tv_sec == read_stat.st_mtim.tv_sec && now.st_mtim.tv_nsec == read_stat.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    snprintf(read_path, sizeof read_path, "%s", path);
    read_stat = now;
    row_count = failure_count = device_count = name_count = zero_rows = whole_buffer = 0;
    memset(devices, 0, sizeof devices);
    while (fgets(line, sizeof line, file)) parse_line(line);
    fclose(file);
}

/* Every call begins here: reload, then what the state says about this function. Returns with the lock held. */
static int enter(const char *function, int index) {
    pthread_mutex_lock(&lock);
    reload();
    for (int i = 0; i < failure_count; i++)
        if (!strcmp(failures[i].function, function) && (failures[i].device == -1 || failures[i].device == index))
            return failures[i].code;
    if (!initialized && strcmp(function, "nvmlInitWithFlags")) return UNINITIALIZED;
    return SUCCESS;
}

static int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

static int index_of(void *handle) { return (int)((device *)handle - devices); }

static u64 wall_clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (u64)now.tv_sec * 1000000ULL + (u64)now.tv_nsec / 1000ULL;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = enter("nvmlInitWithFlags", -1);
    if (code == SUCCESS) initialized = 1;
    return leave(code);
}

int nvmlShutdown(void) {
    int code = enter("nvmlShutdown", -1);
    /* What GPM allocated goes with the library. */
    if (code == SUCCESS) initialized = samples_out = 0;
    return leave(code);
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    int code = enter("nvmlSystemGetDriverVersion", -1);
    if (code == SUCCESS) snprintf(version, length, "%s", driver);
    return leave(code);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = enter("nvmlDeviceGetCount_v2", -1);
    if (code == SUCCESS) *count = (unsigned)device_count;
    return leave(code);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int code = enter("nvmlDeviceGetHandleByIndex_v2", (int)index);
    if (code == SUCCESS && (index >= MAX_DEVICES || !devices[index].known)) code = INVALID_ARGUMENT;
    if (code == SUCCESS) *handle = &devices[index];
    return leave(code);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    int code = enter("nvmlDeviceGetHandleByUUID", -1);
    if (code != SUCCESS) return leave(code);
    for (int i = 0; i < device_count; i++)
        if (devices[i].known && !strcmp(devices[i].uuid, uuid)) {
            *handle = &devices[i];
            return leave(SUCCESS);
        }
    return leave(NOT_FOUND);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    int code = enter("nvmlDeviceGetUUID", index_of(handle));
    if (code == SUCCESS) snprintf(uuid, length, "%s", ((device *)handle)->uuid);
    return leave(code);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    int code = enter("nvmlDeviceGetName", index_of(handle));
    if (code == SUCCESS) snprintf(name, length, "%s", ((device *)handle)->name);
    return leave(code);
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *memory) {
    int code = enter("nvmlDeviceGetMemoryInfo", index_of(handle));
    device *d = handle;
    if (code == SUCCESS) *memory = (memory_v1){d->total, d->total - d->used, d->used};
    return leave(code);
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
    int code = enter("nvmlDeviceGetMemoryInfo_v2", index_of(handle));
    device *d = handle;
    if (code == SUCCESS && memory->version != (sizeof *memory | 2U << 24)) code = VERSION_MISMATCH;
    if (code == SUCCESS) *memory = (memory_v2){memory->version, d->total, 0, d->total - d->used, d->used};
    return leave(code);
}

int nvmlDeviceGetUtilizationRates(void *handle, rates *use) {
    int code = enter("nvmlDeviceGetUtilizationRates", index_of(handle));
    if (code == SUCCESS) *use = (rates){((device *)handle)->percent, 0};
    return leave(code);
}

/* Time stamp of a row's newest sample; a steady process ends one at each multiple of its period. */
static u64 stamp_of(const row *r) {
    if (r->kind != 'c') return r->at;
    u64 now = wall_clock_us();
    return r->period ? now - now % r->period : now;
}

int nvmlDeviceGetProcessUtilization(void *handle, process_sample *out, unsigned *count, u64 since) {
    int index = index_of(handle), code = enter("nvmlDeviceGetProcessUtilization", index);
    unsigned found = 0, room = out ? *count : 0;
    if (code != SUCCESS) return leave(code);
    for (int i = 0; i < row_count; i++) {
        const row *r = &rows[i];
        if (r->device != index || (r->kind != 's' && r->kind != 'c') || !r->percent) continue;
        u64 at = stamp_of(r);
        if (at <= since && !whole_buffer) continue;
        if (found < room) out[found] = (process_sample){r->pid, at, r->percent, 0, 0, 0};
        found++;
    }
    *count = found;
    if (!found) return leave(zero_rows ? SUCCESS : NOT_FOUND);
    return leave(found > room ? INSUFFICIENT_SIZE : SUCCESS);
}

int nvmlDeviceGetSamples(void *handle, unsigned type, u64 since, unsigned *value_type, unsigned *count, device_sample *out) {
    int index = index_of(handle), code = enter("nvmlDeviceGetSamples", index);
    unsigned found = 0, room = *count;
    if (code != SUCCESS) return leave(code);
    for (int i = 0; i < row_count; i++) {
        if (rows[i].device != index || rows[i].kind != 'm' || rows[i].at <= since) continue;
        if (out && found < room) out[found] = (device_sample){rows[i].at, {.ui = rows[i].percent}};
        found++;
    }
    (void)type;
    *value_type = 1;
    *count = found;
    return leave(found ? SUCCESS : NOT_FOUND);
}

static int list_processes(const char *function, void *handle, unsigned *count, process_info *out, char kind) {
    int index = index_of(handle), code = enter(function, index);
    unsigned found = 0, room = out ? *count : 0;
    if (code != SUCCESS) return leave(code);
    for (int i = 0; i < row_count; i++) {
        if (rows[i].device != index || rows[i].kind != kind) continue;
        if (found < room) out[found] = (process_info){rows[i].pid, rows[i].bytes, ~0U, ~0U};
        found++;
    }
    *count = found;
    return leave(found > room ? INSUFFICIENT_SIZE : SUCCESS);
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_info *out) {
    return list_processes("nvmlDeviceGetComputeRunningProcesses_v3", handle, count, out, 'p');
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *count, process_info *out) {
    return list_processes("nvmlDeviceGetMPSComputeRunningProcesses_v3", handle, count, out, 'M');
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process_info *out) {
    return list_processes("nvmlDeviceGetGraphicsRunningProcesses_v3", handle, count, out, 'g');
}

int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    int code = enter("nvmlSystemGetProcessName", -1);
    if (code != SUCCESS) return leave(code);
    for (int i = 0; i < name_count; i++)
        if (names[i].pid == pid) {
            snprintf(name, length, "%s", names[i].name);
            return leave(SUCCESS);
        }
    return leave(NOT_FOUND);
}

/* MIG: an instance's handle is a device of its own, from index 32 on. */
typedef struct { unsigned sms, copy, decoder, encoder, jpeg, ofa, gi_slices, ci_slices; u64 memory_mb; } attributes;
enum { NO_MIG = 3 };

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    int code = enter("nvmlDeviceGetMigMode", index_of(handle));
    const device *d = handle;
    if (code == SUCCESS && d->major < 8) code = NO_MIG;
    if (code == SUCCESS) *current = *pending = (unsigned)d->has_mig;
    return leave(code);
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    int code = enter("nvmlDeviceGetMaxMigDeviceCount", index_of(handle));
    *count = SLOTS;
    return leave(code);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned slot, void **instance) {
    int parent = index_of(handle), code = enter("nvmlDeviceGetMigDeviceHandleByIndex", parent);
    if (code != SUCCESS) return leave(code);
    for (int i = MAX_DEVICES; i < MAX_DEVICES + MAX_INSTANCES; i++)
        if (devices[i].known && devices[i].parent == parent && slot-- == 0) {
            *instance = &devices[i];
            return leave(SUCCESS);
        }
    return leave(NOT_FOUND);
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    int code = enter("nvmlDeviceGetGpuInstanceId", index_of(handle));
    *id = ((device *)handle)->gi;
    return leave(code);
}

int nvmlDeviceGetAttributes_v2(void *handle, attributes *out) {
    int code = enter("nvmlDeviceGetAttributes_v2", index_of(handle));
    const device *d = handle;
    if (code == SUCCESS) *out = (attributes){.sms = d->sms, .gi_slices = d->slices, .ci_slices = d->slices};
    return leave(code);
}

int nvmlDeviceGetNumGpuCores(void *handle, unsigned *count) {
    int code = enter("nvmlDeviceGetNumGpuCores", index_of(handle));
    *count = (unsigned)((device *)handle)->cores;
    return leave(code);
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    int code = enter("nvmlDeviceGetCudaComputeCapability", index_of(handle));
    *major = ((device *)handle)->major;
    *minor = 0;
    return leave(code);
}

/* GPM: a sample holds the counters of a GPU instance; two of them tell, when they are 100 ms apart or more. */
typedef struct { u64 busy, clock; } gpm_sample;
typedef struct { unsigned id; int code; double value; const char *info[3]; } gpm_metric;
typedef struct { unsigned version, count; gpm_sample *first, *second; gpm_metric metrics[1]; } gpm_question;
typedef struct { unsigned version, supported; } gpm_support;

int nvmlGpmQueryDeviceSupport(void *handle, gpm_support *support) {
    int code = enter("nvmlGpmQueryDeviceSupport", index_of(handle));
    support->supported = (unsigned)((device *)handle)->has_gpm;
    return leave(code);
}

int nvmlGpmSampleAlloc(gpm_sample **sample) {
    int code = enter("nvmlGpmSampleAlloc", -1);
    /* Nobody needs more than two of each instance: whoever leaks them is told so. */
    if (code == SUCCESS && samples_out >= 2 * MAX_INSTANCES) code = 20;
    if (code == SUCCESS) *sample = calloc(1, sizeof **sample);
    samples_out += code == SUCCESS;
    return leave(code);
}

int nvmlGpmSampleFree(gpm_sample *sample) {
    int code = enter("nvmlGpmSampleFree", -1);
    free(sample);
    samples_out--;
    return leave(code);
}

int nvmlGpmMigSampleGet(void *handle, unsigned gi, gpm_sample *sample) {
    int parent = index_of(handle), code = enter("nvmlGpmMigSampleGet", parent);
    if (code != SUCCESS) return leave(code);
    for (int i = MAX_DEVICES; i < MAX_DEVICES + MAX_INSTANCES; i++)
        if (devices[i].known && devices[i].parent == parent && devices[i].gi == gi) {
            *sample = (gpm_sample){devices[i].busy, devices[i].clock};
            return leave(SUCCESS);
        }
    return leave(INVALID_ARGUMENT);
}

int nvmlGpmMetricsGet(gpm_question *asked) {
    int code = enter("nvmlGpmMetricsGet", -1);
    u64 clock = asked->second->clock - asked->first->clock, busy = asked->second->busy - asked->first->busy;
    if (code == SUCCESS && (asked->version != 1 || asked->count != 1 || asked->metrics[0].id != 2)) code = INVALID_ARGUMENT;
    if (code != SUCCESS) return leave(code);
    asked->metrics[0].code = clock < 100000 ? INVALID_ARGUMENT : SUCCESS;
    asked->metrics[0].value = clock ? 100.0 * (double)busy / (double)clock : 0.0;
    return leave(SUCCESS);
}

/* Memory limits by cgroup, as the documentation of r615 has them. The kernel's books are files in the cgroup's folder:
 * `books.<uuid>` holds "soft hard used". A soft limit is booked in every ancestor that has books of its own kind (the
 * file dmem.max), and stays booked there when the folder is removed without its limit having been taken back. */
typedef struct { char *name; u64 soft, hard; } set_limits;
typedef struct { char *name; u64 soft, hard, used; } get_limits;
enum { NOT_SUPPORTED = 3, OPERATING_SYSTEM = 17 };
static const u64 UNLIMITED = ~0ULL;

static void books_path(char *path, size_t size, const char *folder, const device *d) {
    snprintf(path, size, "%s/books.%s", folder, d->uuid);
}

static int has_books(const char *folder) {
    char path[4200];
    struct stat found;
    snprintf(path, sizeof path, "%s/dmem.max", folder);
    return !stat(path, &found);
}

static get_limits read_books(const char *folder, const device *d) {
    get_limits books = {NULL, 0, UNLIMITED, 0};
    char path[4400];
    books_path(path, sizeof path, folder, d);
    FILE *file = fopen(path, "r");
    if (!file) return books;
    if (fscanf(file, "%llu %llu %llu", &books.soft, &books.hard, &books.used) != 3) books.hard = UNLIMITED;
    fclose(file);
    return books;
}

static void write_books(const char *folder, const device *d, get_limits books) {
    char path[4400];
    books_path(path, sizeof path, folder, d);
    FILE *file = fopen(path, "w");
    if (!file) return;
    fprintf(file, "%llu %llu %llu\n", books.soft, books.hard, books.used);
    fclose(file);
}

static int judged(const char *folder) {
    struct stat found;
    if (!folder || stat(folder, &found)) return OPERATING_SYSTEM;
    return has_books(folder) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryLimits_v1(void *handle, get_limits *asked) {
    int code = enter("nvmlDeviceGetMemoryLimits_v1", index_of(handle));
    if (code == SUCCESS) code = judged(asked->name);
    if (code != SUCCESS) return leave(code);
    get_limits books = read_books(asked->name, handle);
    asked->soft = books.soft;
    asked->hard = books.hard;
    asked->used = books.used;
    return leave(SUCCESS);
}

int nvmlDeviceSetMemoryLimits_v1(void *handle, set_limits *wanted) {
    const device *d = handle;
    int code = enter("nvmlDeviceSetMemoryLimits_v1", index_of(handle));
    if (code == SUCCESS) code = judged(wanted->name);
    if (code != SUCCESS) return leave(code);
    if (wanted->soft > wanted->hard || (wanted->hard != UNLIMITED && wanted->hard > d->total)) return leave(INVALID_ARGUMENT);
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", wanted->name);
    get_limits books = read_books(folder, d);
    long long more = (long long)wanted->soft - (long long)books.soft;
    books.soft = wanted->soft;
    books.hard = wanted->hard;
    write_books(folder, d, books);
    for (char *slash = strrchr(folder, '/'); slash && slash != folder; slash = strrchr(folder, '/')) {
        *slash = 0;
        if (!has_books(folder)) break;
        get_limits above = read_books(folder, d);
        above.soft = (u64)((long long)above.soft + more);
        write_books(folder, d, above);
    }
    return leave(SUCCESS);
}
