/* Makes and measures HAMi-core's shared region.

   hamicore_region layout       print every offset
   hamicore_region make FILE UUID...  make a region as the library's first process does */
#include <stdio.h>
#include <string.h>

#include "hamicore.h"

static region made;

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "layout")) {
        printf("SIZE %zu\n", sizeof(region) + 1);
        printf("MAGIC_FLAG %zu\nMAJOR %zu\nMINOR %zu\n", offsetof(region, initialized_flag),
               offsetof(region, major_version), offsetof(region, minor_version));
        printf("DEVICE_NUM %zu\nUUIDS %zu\nLIMIT %zu\nSM_LIMIT %zu\n", offsetof(region, device_num),
               offsetof(region, uuids), offsetof(region, limit), offsetof(region, sm_limit));
        printf("PROCS %zu\nPROC_STRIDE %zu\nPROC_PID %zu\nPROC_STATUS %zu\n", offsetof(region, procs), sizeof(slot),
               offsetof(slot, pid), offsetof(slot, status));
        return 0;
    }
    if (count < 4 || strcmp(words[1], "make")) return 2;
    made.initialized_flag = 19920718;
    made.major_version = 1;
    made.minor_version = 2;
    sem_init(&made.sem, 1, 1);
    sem_init(&made.sem_postinit, 1, 1);
    made.priority = 1;
    made.utilization_switch = 1;
    for (int i = 3; i < count && i < 19; i++) {
        snprintf(made.uuids[i - 3], sizeof made.uuids[0], "%s", words[i]);
        made.sm_limit[i - 3] = 100;
        made.device_num++;
    }
    made.proc_num = 1;
    made.procs[0].pid = 7;
    made.procs[0].hostpid = 4711;
    made.procs[0].status = 1;
    FILE *file = fopen(words[2], "wb");
    if (!file || fwrite(&made, sizeof made, 1, file) != 1 || fputc(0, file) == EOF || fclose(file)) return 1;
    return 0;
}
