// Runs saved programs without Python: the kernels' library is loaded, then torch finds their ops by name.
//
// Arguments: the library, an AOTInductor package or a TorchScript file, the input's sizes, a file for the
// results.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

std::vector<at::Tensor> run(const std::string& program, const at::Tensor& x) {
  if (program.substr(program.size() - 3) == "pt2") {
    return torch::inductor::AOTIModelPackageLoader(program).run({x});
  }
  const c10::IValue result = torch::jit::load(program).forward({x});
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& each : result.toTupleRef().elements()) tensors.push_back(each.toTensor());
  return tensors;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  if (dlopen(arguments[1], RTLD_NOW) == nullptr) {
    std::cerr << dlerror() << "\n";
    return 3;
  }
  std::vector<int64_t> sizes;
  int64_t elements = 1;
  for (int index = 4; index < count; ++index) {
    sizes.push_back(std::stoll(arguments[index]));
    elements *= sizes.back();
  }
  const at::Tensor x = at::arange(elements, at::kFloat).reshape(sizes).sin();
  std::ofstream file(arguments[3], std::ios::binary);
  try {
    for (const at::Tensor& result : run(arguments[2], x)) {
      const at::Tensor dense = result.detach().contiguous();
      file.write(static_cast<const char*>(dense.const_data_ptr()),
                 static_cast<std::streamsize>(dense.nbytes()));
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return dlsym(RTLD_DEFAULT, "Py_IsInitialized") == nullptr ? 0 : 4;
}
