// Writes a GGUF file with quantised weights.
//
//   quantize MODEL.gguf OUT.gguf Q8_0|Q4_K_M

#include <iostream>
#include <map>
#include <string>

#include "llama.h"

int main(int argc, char** argv) {
    const std::map<std::string, llama_ftype> formats = {
        {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
        {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M},
    };
    if (argc != 4 || !formats.count(argv[3])) {
        std::cerr << "usage: quantize MODEL.gguf OUT.gguf Q8_0|Q4_K_M\n";
        return 2;
    }
    llama_backend_init();
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = formats.at(argv[3]);
    return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
}
